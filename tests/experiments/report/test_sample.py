from model_patch.experiments.report.sample import Sample


def test_a_sample_is_its_mean_and_its_spread():
    sample = Sample((0.5, 0.75, 1.0, 0.75))
    assert (sample.mean, sample.spread, sample.bars, str(sample)) == (0.75, 0.5, (0.25, 0.25), "0.7500 (0.5000)")


def test_a_mean_is_above_another_by_more_than_either_spread():
    assert Sample((0.8, 0.9)).above(Sample((0.7, 0.7)))  # by 0.15, spread 0.10
    assert not Sample((0.7, 0.9)).above(Sample((0.7, 0.7)))  # by 0.10, spread 0.20
    assert not Sample((0.75, 0.75)).above(Sample((0.7, 0.7)), least=0.1)


def test_equal_values_have_bars_of_no_length():
    for value in (0.7905, 0.1, 0.7):
        sample = Sample((value,) * 3)
        assert sample.mean == value and sample.bars == (0.0, 0.0)
