"""The benchmark suite: its arithmetic, what it reads and checks, and one tiny run of it."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bench import Length, Sample
from benchmarks.commandline import main
from benchmarks.figures import middle, ratio, spread
from benchmarks.goals import judged, parts, verdicts
from benchmarks.load.calls import Call, Shape
from benchmarks.load.connection import events
from benchmarks.load.rounds import Plan, percentile
from benchmarks.modes import MODES
from benchmarks.peers import find
from benchmarks.process import Background, NotStarted, freePort
from benchmarks.procfs import (
    Process,
    cpuSeconds,
    memory,
    parseRollup,
    parseStat,
    processes,
    tree,
    usage,
)
from benchmarks.results import Results, Series
from benchmarks.stretches import waits
from benchmarks.subjects import HTTP, SSE, STREAMABLE, Place, ourselves
from benchmarks.suite import Part, Suite
from benchmarks.tables import aligned, report, summary, table

# Figures


def test_a_median_leaves_out_what_was_not_measured() -> None:
    assert middle([3.0, math.nan, 1.0, 2.0]) == 2.0
    assert math.isnan(middle([math.nan]))
    assert math.isnan(middle([]))


def test_the_spread_is_half_of_the_range_in_parts_of_the_median() -> None:
    assert spread([90.0, 100.0, 120.0]) == pytest.approx(0.15)
    assert math.isnan(spread([]))


def test_a_ratio_is_that_of_the_medians() -> None:
    assert ratio([1.0, 2.0, 30.0], [4.0, 4.0, 100.0]) == 0.5
    assert math.isnan(ratio([1.0], []))


def test_a_percentile_is_one_of_the_values() -> None:
    values = [float(value) for value in range(1, 101)]
    assert percentile(values, 0.5) == 50.0
    assert percentile(values, 0.99) == 99.0
    assert percentile([7.0], 0.99) == 7.0
    assert math.isnan(percentile([], 0.5))


# /proc


def test_a_process_name_may_hold_anything() -> None:
    line = "12 (a) b (c) S 7 " + " ".join(str(number) for number in range(5, 53))
    process = parseStat(line)
    assert (process.pid, process.parent, process.state) == (12, 7, "S")
    assert process.started == 22


def test_this_process_is_in_the_table_with_its_parent() -> None:
    table = processes()
    assert table[os.getpid()].parent == os.getppid()


def test_a_tree_leaves_out_whole_branches() -> None:
    parents = {1: 0, 2: 1, 3: 2, 4: 1, 5: 4, 6: 0}
    table = {pid: Process(pid, parent, "S", 0) for pid, parent in parents.items()}
    assert sorted(tree(table, 1)) == [1, 2, 3, 4, 5]
    assert sorted(tree(table, 1, lambda pid: pid == 4)) == [1, 2, 3]
    assert tree(table, 9) == []


def test_the_cpu_clock_of_a_pid_is_that_of_the_process() -> None:
    before = time.process_time()
    read = cpuSeconds(os.getpid())
    assert before <= read <= time.process_time()


def test_usage_counts_new_processes_and_not_those_that_ended() -> None:
    ours = usage([os.getpid(), 2**22 + 1])
    assert list(ours.cpu) == [os.getpid()]
    assert ours.since(usage([])) == ours.cpu[os.getpid()]


def test_memory_is_read_in_bytes() -> None:
    text = "00400000-7ffd rollup\nRss:   13508 kB\nPss:   9578 kB\nPss_Dirty: 1 kB\n"
    assert parseRollup(text) == (13508 * 1024, 9578 * 1024)
    resident, proportional = memory(os.getpid())
    assert 1_000_000 < proportional <= resident


# What is started


_LISTENS = "import socket, sys, time; s = socket.create_server(('127.0.0.1', int(sys.argv[1])))"


def test_what_a_program_leaves_behind_is_ended_with_it() -> None:
    port = freePort()
    # The shell becomes the program; its `sleep` is left without a word when that is terminated.
    script = f'sleep 60 & exec "$0" -c "{_LISTENS}; time.sleep(60)" {port}'
    running = Background(["/bin/sh", "-c", script, sys.executable], port)
    running.waitUntilItListens()
    family = running.own()
    assert len(family) == 2
    running.close()
    assert not set(family) & {pid for pid, each in processes().items() if each.state != "Z"}


def test_servers_behind_a_program_are_not_its_own() -> None:
    port = freePort()
    script = f'sleep 61 & exec "$0" -c "{_LISTENS}; time.sleep(60)" {port}'
    running = Background(["/bin/sh", "-c", script, sys.executable], port, servers="sleep\0")
    try:
        running.waitUntilItListens()
        assert running.own() == [running.pid]
    finally:
        running.close()


def test_a_program_that_does_not_serve_is_told_with_what_it_printed() -> None:
    running = Background(["/bin/sh", "-c", "echo no such thing; exit 3"], freePort())
    with pytest.raises(NotStarted, match="exited with 3: no such thing"):
        running.waitUntilItListens()
    running.close()
    with pytest.raises(NotStarted, match="No such file"):
        Background(["/no/such/program"], freePort())


# The check of answers


def _answer(call: Call, **changes: Any) -> bytes:
    result = {"content": [{"type": "text", "text": changes.pop("text", call.text)}]}
    return json.dumps({"jsonrpc": "2.0", "id": call.id, "result": result, **changes}).encode()


def _progress(token: object, number: int) -> bytes:
    params = {"progressToken": token, "progress": number}
    method = "notifications/progress"
    return json.dumps({"jsonrpc": "2.0", "method": method, "params": params}).encode()


def _judged(*bodies: bytes, shape: Shape | None = None, status: int = 200) -> str:
    """What is said of a call with id 1 that gets these, as a JSON body or as events."""
    ended: list[Call] = []
    call = Call(1, shape or Shape(), ended.append)
    call.text = "text"
    call.head(status, len(bodies) > 1, "")
    for body in bodies:
        call.data(b"data: " + body + b"\n\n" if len(bodies) > 1 else body)
    call.done()
    assert ended == [call]
    return call.wrong


def test_the_right_answer_is_right() -> None:
    call = Call(1, Shape(), lambda call: None)
    call.text = "text"
    assert _judged(_answer(call)) == ""
    steps = _progress(1, 1), _progress(1, 2)
    assert _judged(*steps, _answer(call), shape=Shape(progress=2)) == ""


@pytest.mark.parametrize(
    ("changes", "wrong"),
    [
        ({"id": 2}, "an answer with id 2 instead of 1"),
        ({"id": "1"}, "an answer with id '1' instead of 1"),
        ({"id": True}, "an answer with id True instead of 1"),
        ({"id": 1.0}, "an answer with id 1.0 instead of 1"),
        ({"text": "txet"}, "the content of another call"),
        ({"text": "tex"}, "cut content"),
        ({"error": {"code": -32000}}, "an error: {'code': -32000}"),
        ({"result": {}}, "a strange result"),
        ({"jsonrpc": "1.0"}, "no JSON-RPC message"),
    ],
)
def test_a_wrong_answer_is_an_error(changes: dict[str, Any], wrong: str) -> None:
    call = Call(1, Shape(), lambda call: None)
    call.text = "text"
    assert _judged(_answer(call, **changes)).startswith(wrong)


def test_what_is_no_answer_is_an_error() -> None:
    call = Call(1, Shape(), lambda call: None)
    call.text = "text"
    assert _judged(b"").startswith("no JSON")
    assert _judged(_answer(call), status=404) == "HTTP status 404"
    assert _judged(_progress(1, 1), _progress(1, 2), shape=Shape(progress=2)) == "no answer"
    assert _judged(_answer(call), _answer(call)) == "a second answer"


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        ([(1, 1)], "1 progress notifications instead of 2"),
        ([(1, 2)], "progress 2 instead of 1"),
        ([(2, 1)], "progress with token 2 instead of 1"),
    ],
)
def test_progress_is_checked_too(steps: list[tuple[int, int]], wrong: str) -> None:
    call = Call(1, Shape(), lambda call: None)
    call.text = "text"
    told = [_progress(*step) for step in steps]
    assert _judged(*told, _answer(call), shape=Shape(progress=2)) == wrong


def test_no_two_calls_have_the_same_text() -> None:
    one, other = (Call(1, Shape(), lambda call: None) for _ in range(2))
    assert one.text != other.text
    assert len(one.text) == len(other.text) == 64
    assert json.loads(one.body())["params"]["arguments"] == {"text": one.text}


@pytest.mark.parametrize("size", [1, 2, 3, 1000])
@pytest.mark.parametrize("newline", [b"\n", b"\r\n"])
def test_events_are_read_however_they_are_cut(size: int, newline: bytes) -> None:
    stream = b": hello\n\nevent: endpoint\ndata: /x\n\nid: 7\ndata:\n\ndata: {}\nid: 8\n\n"
    stream = stream.replace(b"\n", newline)
    taken: list[tuple[str, bytes]] = []
    feed = events(lambda kind, data: taken.append((kind, data)))
    for start in range(0, len(stream), size):
        feed(stream[start : start + size])
    assert taken == [("endpoint", b"/x"), ("message", b"{}")]


def test_a_round_has_an_end() -> None:
    with pytest.raises(ValueError, match="needs an end"):
        Plan(Shape())


# Results


def _results() -> Results:
    results = Results({"date": "today", "python": "3", "system": "Linux", "load": "0"})
    for name, cpu in (("floor", (100.0, 110.0, 90.0)), ("gateway", (50.0, math.nan, 60.0))):
        series = Series(STREAMABLE, "eight", name, "1")
        series.samples = [
            Sample({"cpu": each, "rate": 10.0, "p50": 1.0, "p99": 2.0}) for each in cpu
        ]
        results.series.append(series)
    results.series.append(Series(STREAMABLE, "eight", "absent", "", skipped="not installed"))
    return results


def test_results_can_be_kept(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    results = _results()
    results.save(file)
    assert report(Results.load(file)) == report(results)
    assert "NaN" not in file.read_text()


def test_a_table_shows_medians_beside_the_floor_and_who_was_skipped() -> None:
    text = table(_results(), STREAMABLE, "eight")
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.split("\n")]
    assert ["gateway", "55", "9%", "0.55", "10", "1.00", "2.00", "0"] in rows
    assert "- absent: skipped: not installed" in text


def test_a_table_is_aligned() -> None:
    lines = aligned([["", "long heading"], ["a name", "1"]]).split("\n")
    assert lines == [
        "|        | long heading |",
        "| ------ | -----------: |",
        "| a name |            1 |",
    ]


# Whole


@pytest.mark.parametrize("lane", [STREAMABLE, SSE, HTTP])
def test_a_tiny_run_measures_the_gateway_and_its_floor_without_an_error(lane: str) -> None:
    suite = Suite(ourselves(lane), Length(calls=40), rounds=1, warmups=0)
    results = suite.run([Part(lane, MODES["eight"])])
    measured = list(results.of(lane, "eight"))
    assert [series.subject for series in measured] == ["floor", "gateway"]
    for series in measured:
        assert (series.skipped, series.error, series.errors) == ("", "", 0)
        (sample,) = series.samples
        assert sample.values["cpu"] > 0


# Goals


def _measured(**cpu: float) -> Results:
    """Results of the mode `eight` in the streamable lane; a name ending in `_wrong` had errors."""
    results = Results({})
    for name, value in cpu.items():
        subject = name.removesuffix("_wrong").replace("_", "-")
        series = Series(STREAMABLE, "eight", subject, "1")
        series.samples = [Sample({"cpu": value}, errors=int(name.endswith("_wrong")))]
        results.series.append(series)
    return results


def _verdict(results: Results, name: str) -> tuple[float, bool | None]:
    (verdict,) = [each for each in verdicts(results) if each.goal.name.startswith(name)]
    return verdict.figure, verdict.met


def test_a_goal_is_judged_beside_the_floor() -> None:
    goal = "a call, streamable"
    assert _verdict(_measured(floor=100.0, gateway=30.0), goal) == (0.3, True)
    assert _verdict(_measured(floor=100.0, gateway=31.0), goal) == (0.31, False)
    assert _verdict(_measured(gateway=31.0), goal)[1] is None
    assert _verdict(_measured(floor=100.0), goal)[1] is None


def test_wrong_answers_of_the_gateway_miss_a_goal() -> None:
    assert _verdict(_measured(floor=100.0, gateway_wrong=1.0), "a call, streamable")[1] is False
    wrong = _measured(gateway_wrong=1.0, fastmcp=100.0)
    assert _verdict(wrong, "the best peer")[1] is False


def test_the_best_peer_is_one_whose_answers_are_all_right() -> None:
    results = _measured(gateway=10.0, floor=50.0, supergateway_wrong=60.0, fastmcp=100.0)
    assert _verdict(results, "the best peer") == (10.0, True)
    assert _verdict(_measured(gateway=10.0), "the best peer")[1] is None


def test_all_goals_can_be_run_and_are_told() -> None:
    for part in parts():
        assert part.lane in part.mode.lanes
        assert part.names is not None
        assert {"floor", "gateway"} <= part.names
    text = judged(verdicts(_measured(floor=100.0, gateway=31.0)))
    assert "| a call, streamable → stdio" in text
    assert "missed" in text
    assert "not measured" in text


# Peers


def test_peers_that_are_not_installed_are_told(tmp_path: Path) -> None:
    peers = find(("pypi-mcp-proxy", "envoy"), tmp_path)
    assert peers.subjects == []
    assert list(peers.absent) == ["pypi-mcp-proxy", "envoy"]
    assert peers.absent["pypi-mcp-proxy"].startswith("PyPI package mcp-proxy: there is no ")


def test_a_peer_is_found_with_its_version_and_started_where_it_is_told(tmp_path: Path) -> None:
    home = tmp_path / "mcp-proxy"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "mcp-proxy").touch()
    (home / "lib/python3.11/site-packages/mcp_proxy-0.13.0.dist-info").mkdir(parents=True)
    peers = find(("pypi-mcp-proxy",), tmp_path)
    assert [(each.lane, each.version, each.path) for each in peers.subjects] == [
        (STREAMABLE, "0.13.0", "/mcp"),
        (SSE, "0.13.0", "/sse"),
    ]
    argv = peers.subjects[0].command(Place(1234, 0, tmp_path))
    assert argv[0] == str(home / "bin" / "mcp-proxy")
    assert "1234" in argv
    assert argv[-1].endswith("echo_stdio.py")


# The command line


def test_what_was_kept_is_shown_judged_and_drawn_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "results.json"
    _results().save(kept)
    assert main(["--from", str(kept)]) == 0
    assert "0.55" in capsys.readouterr().out
    assert main(["--from", str(kept), "--check"]) == 1
    assert "0.55" in capsys.readouterr().out
    pytest.importorskip("matplotlib")
    main(["--from", str(kept), "--plots", str(tmp_path)])
    drawn = (tmp_path / "streamable-eight.svg").read_text()
    assert "gateway" in drawn
    assert "CPU µs per call" in drawn
    assert (tmp_path / "streamable-eight.png").stat().st_size > 1000


def test_a_mistake_on_the_command_line_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        main(["--modes", "eight,nine"])
    assert exit.value.code == 2
    assert "nine: expected some of single" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["--from", "/does/not/exist"])
    assert "No such file" in capsys.readouterr().err


def test_a_summary_names_the_cheapest_peer_whose_answers_are_right() -> None:
    results = _measured(gateway=10.0, floor=40.0, npm_wrong=5.0, fastmcp=80.0, envoy=90.0)
    (line,) = [line for line in summary(results).split("\n") if "streamable, eight" in line]
    cells = [cell.strip() for cell in line.split("|")[2:-1]]
    assert cells == ["CPU µs per call", "10", "40", "0.25", "fastmcp", "80"]


def test_several_runs_are_shown_as_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / "one.json", tmp_path / "other.json"]
    first, second = _results(), _results()
    second.series = [Series(SSE, "eight", "gateway", "1", [Sample({"cpu": 77.0})])]
    second.absent = {"nginx": "not there"}
    for file, results in zip(files, (first, second), strict=True):
        results.save(file)
    assert main(["--from", *map(str, files)]) == 0
    shown = capsys.readouterr().out
    assert "0.55" in shown
    assert "77" in shown
    assert "Skipped: nginx: not there." in shown


# How long others wait for the reactor.


@pytest.mark.parametrize(
    ("turns", "part", "waited"),
    [
        # Half of the time goes by in turns of 2 s, so one of four arrivals waits over a second.
        ([2.0] * 5, 0.75, 1.0),
        ([2.0] * 5, 0.5, 0.0),
        # The short ones are over before that.
        ([2.0] * 5 + [0.5] * 8, 0.75, 1.0),
        # Both kinds are waited for: 4 x (3 - w) + 4 x (1 - w) = 12 with w = 0.5.
        ([1.0, 3.0] * 4, 0.4, 0.5),
        ([], 0.99, 0.0),
    ],
)
def test_how_long_others_wait(turns: list[float], part: float, waited: float) -> None:
    assert waits(turns, 20.0, part) == pytest.approx(waited)
