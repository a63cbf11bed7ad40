"""The normal, Student's t and the binomial distribution.

To 7 digits or more up to 1e8 degrees of freedom, or samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable


def normal(z: float) -> float:
    """Return the probability of a standard normal value of at most z."""
    return math.erfc(-z / math.sqrt(2)) / 2


def student(t: float, freedom: float) -> float:
    """Return the probability of a value of Student's t of at most t."""
    tail = _incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t)) / 2
    return tail if t < 0 else 1 - tail


def student_quantile(probability: float, freedom: float) -> float:
    """Return the t with `student(t, freedom) == probability`, which is above 0 and below 1."""
    return _inverse(lambda t: student(t, freedom), probability)


def binomial(least: int, count: int, probability: float) -> float:
    """Return the probability of `least` events or more among `count`, each of this probability."""
    return _incomplete_beta(least, count - least + 1, probability) if least else 1.0


def _inverse(rising: Callable[[float], float], probability: float) -> float:
    low, high = -1.0, 1.0
    while rising(low) > probability:
        low *= 2
    while rising(high) < probability:
        high *= 2
    while True:
        middle = (low + high) / 2
        if not low < middle < high:
            return middle
        low, high = (middle, high) if rising(middle) < probability else (low, middle)


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """Return the regularised incomplete beta function I_x(a, b)."""
    if x in (0, 1):
        return x
    if x > (a + 1) / (a + b + 2):  # where the fraction converges slowly
        return 1 - _incomplete_beta(b, a, 1 - x)
    logs = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b)
    front = math.exp(logs + a * math.log(x) + b * math.log1p(-x)) / a
    # The continued fraction, by Lentz's method.
    fraction, c, d = 1.0, 1.0, 0.0
    for number in range(10_000):
        m = number // 2
        if number == 0:
            term = 1.0
        elif number % 2:
            term = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            term = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        d = 1 / (1 + term * d or 1e-300)
        c = 1 + term / c or 1e-300
        fraction *= c * d
        if number and abs(1 - c * d) < 1e-15:
            break
    return front * (fraction - 1)
