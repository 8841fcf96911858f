"""Measures how fast this machine multiplies matrices, and prints it as one line of JSON.

The training benchmark compares the speed of a recipe with this rate. On a GPU the matrices are bf16.
"""

import argparse
import json
import statistics
import time


def measure_rate() -> dict:
    """TFLOP/s of multiplying two random square matrices, with their size and type.

    The rate is that of the median of 50 timings of ten products each. 50 timings before them warm the device up. A CPU
    multiplies smaller ones: it only has to show that all works.
    """
    import torch

    gpu = torch.cuda.is_available()
    size, dtype = (8192, torch.bfloat16) if gpu else (128, torch.float32)
    left, right, product = (torch.randn(size, size, device="cuda" if gpu else "cpu").to(dtype) for _ in range(3))

    def time_ten() -> float:
        start = time.perf_counter()
        for _ in range(10):
            torch.mm(left, right, out=product)
        if gpu:
            torch.cuda.synchronize()
        return time.perf_counter() - start

    seconds = statistics.median([time_ten() for _ in range(100)][50:])
    tflops = 10 * 2 * size**3 / seconds / 1e12
    return {"tflops": tflops, "size": size, "dtype": str(dtype).removeprefix("torch."), "cuda": torch.version.cuda}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    print(json.dumps(measure_rate()))


if __name__ == "__main__":
    main()
