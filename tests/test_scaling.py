"""The model of several GPUs: its limits are those that can be written down."""

import pytest

from benchmarks.scaling import LINKS, Work, members_speed_up, speed_up, step_seconds, table


def test_without_fixed_costs_and_bytes_it_is_ideal() -> None:
    work = Work(fixed=0, per_clip=1, gradient=0, norms=0, data_rate=1e9)
    assert [speed_up(work, 64, gpus) for gpus in (1, 8, 64)] == pytest.approx([1, 8, 64], rel=1e-4)


def test_fixed_costs_bound_the_speed_up() -> None:
    work = Work(fixed=1, per_clip=0.25, gradient=0, norms=0, data_rate=1e9)
    assert speed_up(work, 16, 16) == pytest.approx(5 / 1.25, rel=1e-3)


def test_gradients_travel_beside_half_of_the_compute() -> None:
    bandwidth, latency = LINKS["node"]
    work = Work(fixed=0.1, per_clip=0, gradient=bandwidth, norms=0, data_rate=1e9)
    assert step_seconds(work, 8, 2)["gradients"] == pytest.approx(2 * 1 / 2 + latency - 0.05)
    assert step_seconds(work, 8, 1)["gradients"] == 0


def test_groups_within_one_gpu_need_no_synchronised_norm() -> None:
    work = Work(fixed=0.01, per_clip=0.001, gradient=0, norms=10, data_rate=1e9)
    assert step_seconds(work, 128, 8, bn_batch=16)["norms"] == 0
    assert step_seconds(work, 128, 16, bn_batch=16)["norms"] == pytest.approx(20 * LINKS["node"][1])
    assert step_seconds(work, 128, 16)["norms"] == pytest.approx(20 * LINKS["between"][1])


def test_slow_data_are_waited_for() -> None:
    work = Work(fixed=0, per_clip=0.001, gradient=0, norms=0, data_rate=100)
    assert step_seconds(work, 16, 1)["data"] == pytest.approx(0.16 - 0.016)


def test_members_come_first() -> None:
    work = Work(fixed=0.02, per_clip=0.001, gradient=17e6, norms=60, data_rate=1e9)
    assert members_speed_up(work, 16, 6, 6) == members_speed_up(work, 16, 8, 6) == 6
    assert members_speed_up(work, 16, 4, 6) == 3, "two rounds of members"
    assert members_speed_up(work, 16, 16, 6) == pytest.approx(6 * speed_up(work, 16, 2))
    assert members_speed_up(work, 16, 8, 6) > speed_up(work, 16, 8)
    assert len(table(work, 16, 6, None)) == 2 + 7 + 1
    with pytest.raises(ValueError, match="16 clips do not spread evenly over 32 GPUs"):
        step_seconds(work, 16, 32)
