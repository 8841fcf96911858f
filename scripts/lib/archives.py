"""Reads single files out of tar and zip archives: within bounds, and without unpacking the archive to disk."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

from lib.files import read_bounded

# The first bytes of a compressed file → the function that opens it.
UNPACKERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# What the standard library raises for archives that are damaged, encrypted or hostile.
UNREADABLE = (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error)
UNREADABLE += (RuntimeError, ValueError, OverflowError)
# An archive of AdGen has three members. The list of members is held in memory.
MOST_MEMBERS = 10_000


def files_in_archive(path: Path, wanted: Callable[[str], object]) -> list[tuple[str, bytes]] | None:
    """Name and bytes of those members whose name is `wanted`, in the order of the archive; None if it is no archive.

    Raises one of UNREADABLE if the archive cannot be read; ends the program if it unpacks to too much.
    """
    tar = unpacked_tar(path)
    if tar:
        return files_in_tar(tar, wanted)
    if zipfile.is_zipfile(path):
        with path.open("rb") as file:
            return files_in_zip(read_bounded(file, str(path), b""), wanted)
    return None


def unpacked_tar(path: Path) -> bytes:
    """The bytes of a tar archive without its compression; nothing if the file is neither compressed nor a tar archive.

    The whole archive is unpacked within bounds before tarfile sees it, because tarfile reads some headers whole,
    whatever their size.
    """
    with path.open("rb") as file:
        start = file.read(tarfile.BLOCKSIZE)
    unpack = next((unpack for magic, unpack in UNPACKERS.items() if start.startswith(magic)), None)
    if not unpack:
        try:
            tarfile.TarInfo.frombuf(start, "utf-8", "surrogateescape")
        except tarfile.TarError:
            return b""
    with unpack(path) if unpack else path.open("rb") as file:
        return read_bounded(file, str(path), b"")


def files_in_tar(data: bytes, wanted: Callable[[str], object]) -> list[tuple[str, bytes]]:
    """Name and bytes of the wanted files in a tar archive; links and devices are passed over."""
    found = []
    with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
        for count, member in enumerate(tar):
            if count == MOST_MEMBERS:
                raise tarfile.TarError(f"it has more than {MOST_MEMBERS:,} members")
            # tarfile would go back by a negative size, and read the same member for ever.
            if member.size < 0:
                raise tarfile.TarError(f"its member {member.name} has a negative size")
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
