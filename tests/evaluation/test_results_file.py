from pathlib import Path

import pytest

from dng_lightning.evaluation.results_file import Table


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "table.csv", ["name", "n", "value"], ["name", "n"])


def test_rows_come_back_as_text_in_their_order(table: Table):
    assert table.rows() == []
    table.add([{"name": 'a, "b"\n', "n": 1, "value": 1 / 3}, {"name": "c", "n": 2, "value": None}])
    table.add([{"name": "d", "n": 1_000_000}])
    assert table.rows() == [
        {"name": 'a, "b"\n', "n": "1", "value": "0.333333"},
        {"name": "c", "n": "2", "value": ""},
        {"name": "d", "n": "1000000", "value": ""},
    ]
    assert [path.name for path in table.path.parent.iterdir()] == ["table.csv"]


def test_a_row_takes_the_place_of_one_with_the_same_key(table: Table):
    table.add([{"name": "a", "n": 1, "value": 1.0}, {"name": "a", "n": 2, "value": 2.0}])
    table.add([{"name": "a", "n": 1, "value": 3.0}, {"name": "b", "n": 1, "value": 4.0}])
    assert [(row["name"], row["n"], row["value"]) for row in table.rows()] == [
        ("a", "1", "3"),
        ("a", "2", "2"),
        ("b", "1", "4"),
    ]


def test_a_column_that_is_none_is_refused_and_the_file_stays_whole(table: Table):
    table.add([{"name": "a", "n": 1}])
    before = table.path.read_bytes()
    with pytest.raises(ValueError, match="other"):
        table.add([{"name": "b", "n": 1, "other": 2}])
    assert table.path.read_bytes() == before


def test_a_file_of_fewer_and_other_columns_is_taken_over(table: Table):
    table.path.write_text("name,old\na,1\n")
    assert table.rows() == [{"name": "a", "n": "", "value": ""}]
    table.add([{"name": "a", "n": 1, "value": 2.0}])
    assert table.path.read_text().split() == ["name,n,value", "a,,", "a,1,2"]
