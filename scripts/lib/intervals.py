"""95% intervals: how far a score might have moved if other rows of the same kind had been scored."""

import numpy as np

RESAMPLES = 1000


def draw_rows(rows: int) -> np.ndarray:
    """(resamples, rows): how often each bootstrap resample draws each row; the same in every call with as many rows."""
    return np.random.default_rng(0).multinomial(rows, np.full(rows, 1 / rows), size=RESAMPLES).astype(float)


def ratio(sums: np.ndarray) -> np.ndarray:
    """Numerators over denominators along the last axis; 0 where the denominator is 0."""
    return np.divide(sums[..., 0], sums[..., 1], out=np.zeros(sums.shape[:-1]), where=sums[..., 1] > 0)


def ci95(score: str, value: float, samples: np.ndarray) -> list[float]:
    """The 95% interval [low, high], to 4 decimals.

    It lies between percentiles of the bootstrap (Efron 1979). That of distinct-4 is value ± 1.96 standard errors by the
    delete-a-group jackknife (Kott 2001).
    """
    if score == "distinct-4":
        groups = len(samples)
        half = 1.96 * float(np.sqrt((groups - 1) / groups * ((samples - samples.mean()) ** 2).sum()))
        return [round(value - half, 4), round(value + half, 4)]
    return [round(float(bound), 4) for bound in np.percentile(samples, (2.5, 97.5))]


def entry(score: str, value: float, samples: np.ndarray) -> dict:
    """A score as results hold it: {"value": number to 6 decimals, "ci95": [low, high]}."""
    return {"value": round(float(value), 6), "ci95": ci95(score, value, samples)}
