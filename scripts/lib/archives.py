"""Reads single files out of tar and zip archives: within bounds, and without unpacking the archive to disk."""

import gzip
import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from lib.files import read_bounded

# What the standard library raises for archives that are damaged, encrypted or hostile.
UNREADABLE = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error)
UNREADABLE += (RuntimeError, ValueError, OverflowError)
# An archive of AdGen has three members. The list of members is held in memory.
MOST_MEMBERS = 10_000


def files_in_archive(path: Path, wanted: Callable[[str], object]) -> list[tuple[str, bytes]] | None:
    """Name and bytes of those members whose name is `wanted`, in the order of the archive; None if it is no archive.

    The archive is a .zip, a .tar or a .tar.gz. Raises one of UNREADABLE if it cannot be read; ends the program if it
    unpacks to too much.
    """
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
        file.seek(0)
        if start.startswith(b"\x1f\x8b"):
            return files_in_tar(read_bounded(gzip.open(file), str(path), b""), wanted)
        if start[257:262] == b"ustar":
            return files_in_tar(read_bounded(file, str(path), b""), wanted)
        if zipfile.is_zipfile(file):
            file.seek(0)
            return files_in_zip(read_bounded(file, str(path), b""), wanted)
    return None


def files_in_tar(data: bytes, wanted: Callable[[str], object]) -> list[tuple[str, bytes]]:
    """Name and bytes of the wanted files in an unpacked tar archive; links and devices are passed over.

    It is unpacked within bounds before tarfile sees it, because tarfile reads some headers whole, whatever their size.
    """
    found = []
    # As a stream, tarfile cannot go back, where a negative size would send it for ever.
    with tarfile.open(fileobj=io.BytesIO(data), mode="r|") as tar:
        for count, member in enumerate(tar):
            if count == MOST_MEMBERS:
                raise tarfile.TarError(f"it has more than {MOST_MEMBERS:,} members")
            if member.isfile() and wanted(member.name):
                found.append((member.name, read_bounded(tar.extractfile(member), member.name)))
    return found


def files_in_zip(data: bytes, wanted: Callable[[str], object]) -> list[tuple[str, bytes]]:
    """Name and bytes of the wanted files in a zip archive."""
    with open_zip(data) as zipped:
        return [(name, read_bounded(zipped.open(name), name)) for name in zipped.namelist() if wanted(name)]


def open_zip(data: bytes) -> zipfile.ZipFile:
    """A zip archive in memory; raises BadZipFile if it is none, or has so many members that their list is too long."""
    # Each entry in the list of members begins with these bytes.
    if data.count(b"PK\x01\x02") > MOST_MEMBERS:
        raise zipfile.BadZipFile(f"it has more than {MOST_MEMBERS:,} members")
    return zipfile.ZipFile(io.BytesIO(data))
