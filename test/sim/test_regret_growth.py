"""``nightjar``'s regret where nothing moves grows no faster than the paper's bound, Õ(√T)."""

from statistics import median

from bench.regret.growth import curve, slope


def test_regret_grows_no_faster_than_the_root_of_the_iterations():
    slopes = [slope(curve("nightjar", 4, seed, 12_000), first=2_000) for seed in range(3)]
    assert median(slopes) < 0.55
    others = [
        slope(curve("nightjar, if every bin of block b explores with 1/b", 4, seed, 12_000), first=2_000)
        for seed in range(3)
    ]
    assert median(others) > 0.7
