"""The table of who is ended by what where is whole: each combination is a cell, or says why it is none."""

import itertools

from tests.chaos import kills
from tests.chaos.kills import NO_CELLS, POINTS, SIGNALS, Cell, Process

EVERY_POINT = list(dict.fromkeys(point for points in POINTS.values() for point in points))
COMBINATIONS = list(itertools.product(Process, SIGNALS, EVERY_POINT))


def test_each_signal_to_each_process_at_each_point_is_a_cell_or_has_its_one_reason() -> None:
    cells = list(kills.cells())
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells})
    for process, number, point in COMBINATIONS:
        reasons = [
            why for ours, numbers, points, why in NO_CELLS if process in ours and number in numbers and point in points
        ]
        is_cell = Cell(process, number, point) in cells
        assert len(reasons) == (0 if is_cell else 1), (process, number.name, point.name)
        assert is_cell <= (point in POINTS[process]), "it can stand there"


def test_a_round_has_each_signal_to_each_process_and_each_point_but_a_few() -> None:
    for process in Process:
        there = [cell for cell in kills.cells() if cell.process is process]
        taken = [cell for cell in there if kills.in_round(cell)]
        left_out = {name for one, name in kills._LEFT_OUT if one is process}
        assert {cell.point for cell in there} == set(POINTS[process])
        assert {cell.point.name for cell in taken} == {point.name for point in POINTS[process]} - left_out
        assert {cell.number for cell in taken} == {cell.number for cell in there}


def test_the_table_shows_each_cell_once() -> None:
    table = kills.table()
    assert [table.count(f" {cell.name} ") + table.count(f"**{cell.name}**") for cell in kills.cells()] == [
        1 for _ in kills.cells()
    ]
    assert table.count("**") == 2 * sum(map(kills.in_round, kills.cells()))
