"""`debug.roofline`: rows whose work is that of `cost_analysis` and whose times add up to a call."""

from __future__ import annotations

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax
from infini.backends.cpu.limits import Limits
from infini.core import errors
from infini.debug import rooflines

LIMITS = Limits(2, 1e11, {1 << 20: 1e11, 1 << 27: 1e10}, {1 << 20: 1e11, 1 << 27: 1e10})
X, W = np.ones((64, 128), np.float32), np.ones((128, 32), np.float32)


def measured(f, *args, calls=1):
    return rooflines.measure(f, args, {}, calls, LIMITS)


PROGRAMS = {
    "elementwise": (lambda x: inp.tanh(x) * 2, (X,)),
    "product": (lambda x, w: inp.exp(x @ w) + 1, (X, W)),
    "gradient": (inf.grad(lambda w: inp.tanh(X @ w).sum()), (W,)),
    "loop": (lambda x: lax.fori_loop(0, 5, lambda i, c: inp.sin(c) + 1, x), (X,)),
    "scan of products": (
        lambda x: lax.scan(lambda c, r: (inp.tanh(c @ c) + r, c.sum()), x[0], x),
        (np.ones((6, 16, 16), np.float32),),
    ),
    "gather": (lambda x: x[np.array([3, 5, 3])] * 2, (X,)),
    "scatter": (lambda x: x.at[np.array([3, 5])].add(1.0), (X,)),
    "sort": (lambda x: inp.sort(x, -1), (X,)),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_totals_are_those_of_cost_analysis(name):
    f, args = PROGRAMS[name]
    found, expected = measured(f, *args), inf.jit(f).lower(*args).compile().cost_analysis()
    copied = 2 * expected["copied bytes"]
    assert found.totals["flops"] == expected["flops"]
    assert found.totals["transcendentals"] == expected["transcendentals"]
    assert expected["bytes accessed"] <= found.totals["bytes accessed"] <= expected["bytes accessed"] + copied


@pytest.mark.parametrize("name", ["product", "loop"])
def test_times_add_up_to_a_call(name):
    f, args = PROGRAMS[name]
    found = measured(f, *args, calls=3)
    assert sum(row.measured_s for row in found.rows) == pytest.approx(found.wall_s)
    assert found.rows[-1].name == rooflines.OUTSIDE and found.num_calls == 3
    times = [row.measured_s for row in found.kernels]
    assert times == sorted(times, reverse=True)


def test_rows_say_what_limits_them():
    product = measured(lambda x: x @ x, np.ones((256, 256), np.float32)).kernels
    rows = {row.bound: row for row in (*product, *measured(lambda y: y + 1, X).kernels)}
    assert rows["compute"].predicted_s == pytest.approx(2 * 256**3 / LIMITS.flops_per_s)
    assert rows["memory"].predicted_s == pytest.approx(2 * X.nbytes / 1e11)
    assert rows["memory"].share == rows["memory"].predicted_s / rows["memory"].measured_s
    assert all(row.where.file == __file__ for row in rows.values())


def test_a_loop_that_turns_as_often_as_it_likes_counts_its_turns():
    def f(x):
        return lax.while_loop(lambda c: c[0, 0] < 6.5, lambda c: inp.tanh(c @ c) * 0 + c + 1, x)

    found = measured(f, np.zeros((32, 32), np.float32))
    (row,) = [row for row in found.kernels if row.name.startswith("dot")]
    assert (row.runs, row.flops) == (7, 7 * 2 * 32**3)


def test_a_branch_that_is_not_taken_has_no_row():
    def f(p, x):
        return lax.cond(p, lambda x: x @ x, lambda x: inp.sin(x), x)

    names = [row.name for row in measured(f, True, np.ones((32, 32), np.float32)).kernels]
    assert any(name.startswith("dot") for name in names) and not any("sin" in name for name in names)


def test_equal_kernels_of_one_line_are_one_row():
    def f(x):
        for _ in range(4):
            x = inp.tanh(x @ x)
        return x

    rows = measured(f, np.ones((64, 64), np.float32)).kernels
    assert [row.runs for row in rows] == [4]


def test_donated_arguments_stay():
    x = inp.ones((64, 64))
    found = measured(inf.jit(lambda x: x * 2, donate_argnums=0), x, calls=2)
    assert not x.is_deleted() and float(x.sum()) == 64 * 64 and len(found.kernels) == 1


def test_it_prints_a_table_and_returns_it(monkeypatch, capsys):
    monkeypatch.setattr(rooflines.limits_, "known", lambda: LIMITS)
    monkeypatch.setenv("COLUMNS", "200")

    def f(x):
        return inp.tanh(x[0])

    found = inf.debug.roofline(f, X, calls=2)
    printed = capsys.readouterr().out
    assert "tanh" in printed and "inp.tanh(x[0])" in printed and rooflines.OUTSIDE in printed
    assert "of limit" in str(found) and "tanh" in found._repr_html_()
    assert isinstance(found, inf.debug.Roofline)


def test_other_backends_are_refused():
    x = inf.device_put(X, inf.devices("reference")[0])
    with pytest.raises(errors.UnsupportedError, match="roofline measures programs of the CPU"):
        measured(inf.jit(lambda x: x * 2), x)


def test_limits_are_kept_and_only_get_better():
    worse = Limits(2, 1.0, {1: 5.0}, {1: 1.0})
    assert worse.better(Limits(2, 2.0, {1: 3.0}, {1: 4.0})) == Limits(2, 2.0, {1: 5.0}, {1: 4.0})
    assert Limits.from_json(worse.as_json()) == worse
