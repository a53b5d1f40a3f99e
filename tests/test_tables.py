"""The summary's tables keep the printed values, and every number here is made up and links home."""

import csv
import re
from pathlib import Path

import pytest
from made_up import made_up

from dmlstudy.errors import StudyError
from dmlstudy.study.controls import controls_table, recorded_controls
from dmlstudy.study.literature import load_reported
from dmlstudy.study.ranking import ranking
from dmlstudy.study.summary import incomparable, summary_tables, write_tables
from dmlstudy.study.tables import DASH, Note, Part, Table, interval, number, signed

ROOT = Path(__file__).parents[1]
REPORTED = load_reported(ROOT / "params" / "reported.yaml")


def table_of(records, name):
    return next(t for t in summary_tables(records, REPORTED) if t.name == name)


def printed_tables():
    """(heading, metrics, rows) of the source's pipe tables."""
    seeds = sorted((ROOT.parent / "shared" / "seeds").glob("002_*.txt"))
    if not seeds:
        pytest.skip("the Chinese summary lies in ../shared/seeds, which this checkout lacks")
    found = re.findall(r"^### (.+)\n\n((?:\|.*\n)+)", seeds[0].read_text(encoding="utf-8"), re.M)
    for heading, body in found:
        lines = [
            [c.strip() for c in line.strip().strip("|").split("|")] for line in body.split("\n")
        ]
        yield heading.strip(), lines[0][1:], [line for line in lines[1:] if any(line)]


def test_reported_values_are_the_source_word_for_word():
    ours = [
        (table.heading, table.metrics, [[row.label, *row.values] for row in table.rows])
        for table in REPORTED.tables
    ]
    assert ours == list(printed_tables())


def test_the_four_tables_mirror_the_source():
    names = [(t.name, len(t.rows), len(t.columns)) for t in summary_tables([], REPORTED)]
    assert names == [("cub200_2011", 9, 5), ("cars196", 9, 5), ("sop", 8, 4), ("inshop", 5, 5)]


def test_papers_are_the_fourteen_and_own_their_methods():
    assert [paper.number for paper in REPORTED.papers] == list(range(1, 15))
    assert REPORTED.paper("multi_similarity").number == 6
    for table in REPORTED.tables:
        for row in table.rows:  # printed labels begin with the card's number
            assert row.label.startswith(f"{REPORTED.paper(row.method).number}.")
    assert all(paper.notes for paper in REPORTED.papers)
    assert all(note.en and note.zh for paper in REPORTED.papers for note in paper.notes)


def test_reported_numbers():
    expected = {"R@1": 53.6, "R@2": 65.5, "R@4": 76.9}
    assert REPORTED.numbers("cub200_2011", "discriminative_sampling") == expected
    assert REPORTED.numbers("cub200_2010", "multi_similarity") is None


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda text: "papers: []", r"reported\.yaml are malformed \(it lacks tables"),
        (lambda text: text.replace("certainty: code", "certainty: sure", 1), "must be 'code'"),
        (lambda text: text.replace('"51.43", ', "", 1), "one value for each of"),
        (lambda text: text + "[", "reported.yaml are malformed"),
    ],
)
def test_malformed_reported_file_is_named(tmp_path, damage, message):
    path = tmp_path / "reported.yaml"
    path.write_text(damage((ROOT / "params" / "reported.yaml").read_text(encoding="utf-8")))
    with pytest.raises(StudyError, match=message):
        load_reported(path)


def test_missing_runs_are_em_dashes_beside_the_printed_value():
    for table in summary_tables([], REPORTED):
        assert all(cell[1:] == [DASH] for row in table.texts for cell in row[1:])
    assert re.search(r"\| 51.43<br>— +\|", table_of([], "cub200_2011").markdown())


def test_comparable_run_stands_under_the_reported_data_set():
    record = made_up("multi_similarity", 60.0, "cub200_2011", comparable=True)
    table = table_of([record], "cub200_2011")
    assert len(table.columns) == 5
    assert table.texts[3][1] == ["65.7", "60.0 ± 2.5", "Δ +20.0"]
    assert table.rows[3][1][1].link == "cub200_2011/multi_similarity.ipynb"


@pytest.mark.parametrize(
    ("dataset", "table", "width"),
    [("cub200_2010", "cub200_2011", 4), ("cars196", "cars196", 4), ("omniglot", "sop", 3)],
)
def test_stand_in_runs_never_enter_the_official_columns(dataset, table, width):
    shown = table_of([made_up("multi_similarity", 35.0, dataset)], table)
    row = next(row for row in shown.texts if row[0][0] == "6.MS")
    assert all(cell[1] == DASH for cell in row[1 : 1 + width])
    assert row[1 + width] == ["35.0 ± 2.5", "Δ −5.0"]
    assert all("不可与论文比较" in group for group, _ in shown.columns[1 + width :])
    assert any("half of the images" in note.en for note in shown.notes)


def test_single_seed_has_no_interval():
    one = {"R@1": [50.0]}
    record = made_up("sche", 50.0, seeds=[0], metrics=one, baseline={"R@1": [40.0]}, per_class={})
    row = table_of([record], "cub200_2011").texts[2]
    assert row[5:7] == [["50.0 (one seed)", "Δ +10.0"], [DASH]]


def test_html_is_chinese_offline_and_reproducible():
    html = table_of([made_up("sche", 50.0)], "cub200_2011").html()
    assert '<table id="T_cub200_2011" lang="zh-Hans">' in html
    assert 'href="cub200_2010/sche.ipynb"' in html
    assert "http" not in html
    assert html == table_of([made_up("sche", 50.0)], "cub200_2011").html()


HOSTILE = "<img src=x onerror=alert(1)> a|b*c `d` $x$ [e](javascript:f) _g_"


def test_text_from_data_stays_text():
    table = Table(
        name="hostile",
        columns=[HOSTILE, ("group " + HOSTILE, "b")],
        rows=[[HOSTILE, Part(HOSTILE, "ours", "a.ipynb")]],
        title=HOSTILE,
        legend=HOSTILE,
        notes=[Note(HOSTILE, HOSTILE, HOSTILE)],
    )
    html, markdown = table.html(), table.markdown()
    assert "<img" not in html + markdown
    assert html.count("&lt;img") == markdown.count("&lt;img") == 9
    assert not re.search(r"\$x", html)
    rows = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in rows}) == 1
    for mark in (r"(?<!\\)\$", r"(?<!\\)`", r"b(?<!\\)\*c", r"(?<!\\)_g", r"(?<!\\)\]\(java"):
        assert not re.search(mark, markdown), mark
    assert HOSTILE in table.text()


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (number(-1.25, 2), "−1.25"),
        (number(-0.001, 2), "0.00"),
        (number(None), DASH),
        (signed(0.04), "0.0"),
        (signed(-0.04), "0.0"),
        (signed(0.06), "+0.1"),
        (signed(float("nan")), DASH),
        (interval(-1.0, float("nan")), "−1.0"),
        (interval(60.0, 0.0, 2), "60.00 ± 0.00"),
    ],
)
def test_numbers_are_written_in_one_way(written, expected):
    assert written == expected


def test_written_copies_keep_values_and_links(tmp_path):
    write_tables([made_up("sche", 50.0)], REPORTED, tmp_path)
    with (tmp_path / "cub200_2011.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    printed = [row["reported"] for row in rows if row["dataset"] == "cub200_2011"]
    assert printed == [value for row in REPORTED.tables[0].rows for value in row.values]
    run = next(r for r in rows if r["dataset"] == "cub200_2010" and r["method"] == "sche")
    assert float(run["mean"]) == 50.0 and run["reported"] == DASH
    markdown = (tmp_path / "cub200_2011.md").read_text(encoding="utf-8")
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert len(lines) == 2 + 9 and len({line.count("|") for line in lines}) == 1
    assert "**[50.0 ± 2.5](../cub200_2010/sche.ipynb)**<br>Δ +10.0" in markdown
    written = {path.stem for path in tmp_path.glob("*.md")}
    assert written == {path.stem for path in tmp_path.glob("*.csv")}
    assert {"ranking_cub200_2010", "controls", "incomparable", "inshop"} <= written


def test_everything_stands_without_a_single_record(tmp_path):
    write_tables([], REPORTED, tmp_path)
    assert len(list(tmp_path.glob("*.md"))) == 6
    empty = ranking([], "cars196")
    assert "No finished run on cars196 yet." in empty.text() and "<table" in empty.html()
    assert "No control has run yet." in controls_table(recorded_controls([])).html()


def test_incomparable_lists_rows_groups_and_stand_ins():
    records = [made_up("a", 50.0), made_up("sche", 50.0, "cub200_2011", comparable=True)]
    about = {row[0][0] for row in incomparable(REPORTED, records).texts}
    assert {"12. DSML", "Reported rows", "CUB-200-2010"} <= about
    assert "cub200_2011" not in about


@pytest.mark.parametrize(("state", "mark"), [("yes", "‡"), ("partly", "†"), ("no", "")])
def test_a_collapse_is_marked_in_every_table(state, mark):
    found = {"states": ["no", "no", state], "loss": [0.2] * 3, "at_a_point": [0.2] * 3}
    record = made_up(
        "sche", 50.0, collapse={"method": found, "a": found}, controls={"a": {"R@1": [49.0]}}
    )
    tables = [
        ranking([record], "cub200_2010"),
        table_of([record], "cub200_2011"),
        controls_table(recorded_controls([record]), records=[record]),
    ]
    cells = [
        tables[0].texts[0][1][0],
        tables[1].texts[2][5][0],
        tables[2].texts[0][2][0],
    ]
    assert [cell.endswith(f" {mark}") for cell in cells] == [bool(mark)] * 3
    explained = [
        [note for note in table.notes if "if all embeddings" in note.en] for table in tables
    ]
    assert [len(notes) for notes in explained] == [int(bool(mark))] * 3
    assert all(note.zh for notes in explained for note in notes)
