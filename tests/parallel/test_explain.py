"""`explain_sharding`: placements of equations, what they send, memory, and the page."""

from html.parser import HTMLParser

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import lax, parallel
from infini.core import tree
from infini.sharding import Collectives, Link, Machine, P, make_mesh

X = np.ones((16, 8), np.float32)
W = np.ones((8, 8), np.float32)


@pytest.fixture(autouse=True)
def devices():
    with inf.config(device="reference", cpu_devices=4):
        yield


@pytest.fixture
def mesh():
    return make_mesh((2, 2), ("data", "model"))


def product(x, w):
    hidden = inp.tanh(x @ w)
    return hidden @ w.T


def explained(f, mesh, specs, *args, memory=False, **options):
    return parallel.explain_sharding(inf.shard(f, mesh=mesh, in_specs=specs, **options), *args, memory=memory)


def test_every_equation_has_its_placement(mesh):
    shown = explained(product, mesh, (P("data"), P(None, "model")), X, W)
    found = {e.op.name: shown.placement(e) for e in shown.found.source.equations}
    assert found["tanh"] == "P('data', 'model')"
    assert found["dot"] == "P('data') + partial over model"


def test_an_equation_says_what_it_sends_and_why(mesh):
    def f(x, w):
        return inp.sin(product(x, w))

    shown = explained(f, mesh, (P("data"), P(None, "model")), X, W)
    (sine,) = [e for e in shown.found.source.equations if e.op.name == "sin"]
    (message,) = shown.messages(sine)
    assert str(message) == "psum over model: 256 bytes for sin, operand 0"
    assert message.collective.where.line == f.__code__.co_firstlineno + 1


def test_what_travels_together_says_so(mesh):
    def f(x, w):
        return [lax.with_sharding_constraint(y, P()) for y in (x.sum(0), inp.sin(x).sum(0))]

    with mesh:
        shown = explained(f, mesh, (P("data"), P()), X, W)
        apart = explained(f, mesh, (P("data"), P()), X, W, collectives=Collectives(bucket_bytes=0))
    assert [c.num_operands for c in shown.collectives] == [2]
    assert [c.num_operands for c in apart.collectives] == [1, 1]
    assert "(in one message with 1 other)" in shown


def test_loops_are_explained_with_their_trips(mesh):
    def f(x, w):
        return lax.scan(lambda c, _: (lax.with_sharding_constraint(c @ w, P()), None), x, None, length=3)[0]

    with mesh:
        shown = explained(f, mesh, (P(), P("model")), X, W)
    assert "bytes, 3 times, for" in shown
    assert "3 collectives" in str(shown).splitlines()[0]


def test_loops_whose_trips_are_not_known_say_so(mesh):
    f = lambda x, w: lax.while_loop(lambda c: c.sum() < 3, lambda c: c @ w, x)  # noqa: E731
    assert "as often as values say" in explained(f, mesh, (P(), P("model")), X, W)


def step(w, x):
    gradient = inf.grad(lambda w: sum((inp.tanh(x @ p) ** 2).mean() for p in w))(w)
    return tree.map(lambda p, g: p - g, w, gradient)


def test_split_weights_need_less_memory(mesh):
    weights = [np.ones((64, 64), np.float32)] * 2
    x = np.ones((8, 64), np.float32)

    def peak(spec):
        shown = explained(step, mesh, ([spec] * 2, P("data")), weights, x, memory=True, out_specs=[spec] * 2)
        assert shown.memory["arguments"] + shown.memory["results"] <= shown.memory["peak"]
        return shown.memory["peak"]

    assert peak(P("model")) < 0.8 * peak(P())


def test_the_peak_counts_loops_and_what_they_carry(mesh):
    def f(x, w):
        return lax.scan(lambda c, _: (lax.with_sharding_constraint(c @ w, P()), None), x, None, length=3)[0]

    with mesh:
        shown = explained(f, mesh, (P(), P("model")), X, W, memory=True)
    # The argument, the result of the loop, and in a turn at least the product and the whole weight.
    assert shown.memory["peak"] >= 3 * X.nbytes + W.nbytes // 2


def test_another_machine_predicts_another_time(mesh):
    def seconds(speed):
        return explained(
            product, mesh, (P("data"), P(None, "model")), X, W, machine=Machine(Link(speed))
        ).seconds

    assert seconds(1e6) == pytest.approx(1000 * seconds(1e9))


class Reader(HTMLParser):
    """Open tags, and the text of each kind."""

    def __init__(self):
        super().__init__()
        self.open, self.code, self.rects = [], [], 0

    def handle_starttag(self, tag, attrs):
        self.rects += tag == "rect"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.rects += tag == "rect"

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "code" in self.open:
            self.code.append(data)


def test_the_page_has_the_mesh_and_every_equation(mesh, tmp_path):
    shown = explained(product, mesh, (P("data"), P(None, "model")), X, W, memory=True)
    path = shown.save(tmp_path / "page.html")
    reader = Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    assert reader.open == [] and reader.rects == 4
    for equation in (*shown.found.source.equations, *shown.found.program.equations):
        assert equation.op.name in reader.code
    assert "[0:8, 0:8] on 0, 1" in path.read_text() and "http" not in path.read_text()


def test_a_mesh_of_many_devices_is_counted_not_drawn():
    with inf.config(cpu_devices=128):
        many = make_mesh((16, 8), ("data", "model"))
        page = explained(product, many, (P("data"), P(None, "model")), X, W).page()
    assert "128 devices" in page and "<rect" not in page


def test_a_mesh_is_needed():
    with pytest.raises(ValueError, match="explain_sharding needs a mesh"):
        parallel.explain_sharding(product, X, W)
