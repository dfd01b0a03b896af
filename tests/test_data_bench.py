"""The plain one-sample-at-a-time data path gives what ours gives; the benchmark would time nothing otherwise."""

import pytest

from benchmarks import data
from model.store import open_store


@pytest.mark.parametrize("prepared", [True, False])
def test_every_stream_and_augmentation_equals_the_plain_form(tmp_path, prepared):
    data.write(tmp_path / "store", 24)
    rates = list(data.batches(open_store(tmp_path / "store"), 24, 1, prepared))
    assert len(rates) == len(data.STREAMS) + len(data.AUGMENTATIONS) - 1 and all(rate.ours > 0 for rate in rates)


def test_heat_maps_and_raw_files_equal_the_plain_form(tmp_path):
    data.write(tmp_path / "flat", 4, "coco", flat=True)
    assert len(list(data.maps(open_store(tmp_path / "flat"), 2, 1))) == 2
    (rate,) = data.raw(1)
    assert rate.aim == 5


def test_a_difference_stops_the_benchmark(tmp_path, monkeypatch):
    data.write(tmp_path / "store", 24)
    monkeypatch.setattr(data, "plain_sample", lambda *given: data_sample(*given) + 1e-3)
    with pytest.raises(SystemExit, match="joint, rotate, flip: the two ways differ by 1.0e-03"):
        list(data.batches(open_store(tmp_path / "store"), 4, 1, True))


data_sample = data.plain_sample
