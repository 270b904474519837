"""Sizes and times as they are shown."""

from kdistill.formatting import byte_count, duration


def test_sizes_have_a_unit_that_fits():
    sizes = (1, 2_500, 999_999, 1_000_000, 2_500_000_000)
    shown = ["1 B", "2.5 kB", "1000.0 kB", "1.0 MB", "2.5 GB"]
    assert [byte_count(nbytes) for nbytes in sizes] == shown


def test_times_have_hours_where_there_are_some():
    assert [duration(seconds) for seconds in (9.6, 123, 3723)] == ["0:10", "2:03", "1:02:03"]
