"""Pulling from a hub that fails in the ways that hubs do, and the store that models lie in."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import infini as inf
from infini.core import errors
from infini.io import folders, tensors
from infini.llm import hub as hubs
from infini.llm.hub import fetching, names, pulling, remote, store
from tests.llm.hub import fake

GGUF = {
    "model-Q4_K_M.gguf": b"GGUF" * 300,
    "model-Q8_0-00001-of-00002.gguf": b"one" * 500,
    "model-Q8_0-00002-of-00002.gguf": b"two" * 500,
    "mmproj-model-f16.gguf": b"eyes",
    "README.md": b"# model",
}


@pytest.fixture(autouse=True)
def models_dir(tmp_path: Path) -> Iterator[Path]:
    with inf.config(models_dir=str(tmp_path / "models")):
        yield tmp_path / "models"


def _pull(name: str = "org/model", **how: object) -> Path:
    return hubs.pull(name, wait_s=0.0, **how)  # type: ignore[arg-type]


def _contents(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- what is fetched --------------------------------------------------------------------------


def test_a_model_is_fetched_without_pickles_and_code(hub: fake.Hub, models_dir: Path) -> None:
    found = _pull()
    assert found == models_dir / "org" / "model"
    assert _contents(found) == {"config.json", "model.safetensors", "tokenizer.json", "infini.json"}
    assert (found / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert [path.name for path in models_dir.joinpath("org").iterdir()] == ["model"]
    assert json.loads((found / "infini.json").read_text())["commit"] == fake.COMMIT


def test_patterns_choose_files(hub: fake.Hub) -> None:
    assert _contents(_pull(include=["*.json"], exclude=["tok*", "onnx/*"])) == {"config.json", "infini.json"}
    with pytest.raises(errors.ValueMismatchError, match="no file that fits"):
        _pull(include=["*.xyz"])


def test_a_second_pull_fetches_nothing(hub: fake.Hub) -> None:
    _pull()
    hub.seen.clear()
    _pull()
    assert hub.fetched() == []


def test_a_new_state_fetches_what_changed(hub: fake.Hub, models_dir: Path) -> None:
    _pull()
    hub.commit = "d" * 40
    hub.files["config.json"] = b'{"model_type": "qwen2"}'
    del hub.files["tokenizer.json"]
    hub.seen.clear()
    found = _pull()
    assert hub.fetched() == ["config.json"]
    assert _contents(found) == {"config.json", "model.safetensors", "infini.json"}
    assert "qwen2" in (found / "config.json").read_text()


def test_a_variant_is_one_file_and_another_stays_beside_it(hub: fake.Hub) -> None:
    hub.files = dict(GGUF)
    assert _pull("org/model:q4_k_m").name == "model-Q4_K_M.gguf"
    found = _pull("org/model:Q8_0")
    assert found.name == "model-Q8_0-00001-of-00002.gguf"
    assert _contents(found.parent) == {*list(GGUF)[:3], "infini.json"}
    with pytest.raises(errors.ValueMismatchError, match="no variant Q2_K"):
        _pull("org/model:Q2_K")


def test_without_a_variant_it_is_the_usual_one(hub: fake.Hub) -> None:
    hub.files = dict(GGUF)
    assert _pull().name == "model-Q4_K_M.gguf"
    hub.files = {"a-IQ1_S.gguf": b"x", "a-IQ2_S.gguf": b"x"}
    hub.commit = "e" * 40
    with pytest.raises(errors.ValueMismatchError, match="several variants"):
        _pull()


def test_weights_as_pickles_are_named(hub: fake.Hub) -> None:
    del hub.files["model.safetensors"]
    with pytest.raises(errors.ValueMismatchError, match="pickles"):
        _pull()


def test_modelscope_has_its_own_interface(hub: fake.Hub) -> None:
    found = _pull(source="modelscope")
    assert (found / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    assert any(path == "/api/v1/models/org/model/repo" for path, _ in hub.seen)
    with pytest.raises(remote.HubError, match="there is no org/other"):
        _pull("org/other", source="modelscope")


# --- what goes wrong --------------------------------------------------------------------------


def test_a_cut_connection_goes_on_where_it_ended(hub: fake.Hub) -> None:
    hub.cuts["model.safetensors"] = [300_000, 200_000, 0, 1]
    found = _pull()
    assert (found / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    ranges = [headers.get("range") for path, headers in hub.seen if path.endswith("model.safetensors")]
    assert ranges[0] is None and all(text is not None for text in ranges[1:])


def test_a_pull_that_was_given_up_goes_on_later(hub: fake.Hub, models_dir: Path) -> None:
    hub.cuts["model.safetensors"] = [300_000] + [0] * 20
    with pytest.raises(remote.HubError, match="cannot be reached"):
        _pull()
    assert not (models_dir / "org" / "model").exists()
    hub.cuts.clear()
    hub.seen.clear()
    _pull()
    asked = {
        path.rpartition("/")[2]: headers.get("range") for path, headers in hub.seen if "/resolve/" in path
    }
    assert asked == {"model.safetensors": "bytes=300000-"}


def test_a_server_without_ranges_starts_again(hub: fake.Hub) -> None:
    hub.has_ranges = False
    hub.cuts["model.safetensors"] = [300_000]
    assert (_pull() / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_damaged_file_is_fetched_once_more(hub: fake.Hub, path: str) -> None:
    hub.spoilt[path] = 1
    assert (_pull() / path).read_bytes() == hub.files[path]
    assert hub.fetched().count(path) == 2


@pytest.mark.parametrize("path", ["model.safetensors", "config.json"])
def test_a_file_damaged_twice_is_named_and_nothing_is_left_of_it(
    hub: fake.Hub, path: str, models_dir: Path
) -> None:
    hub.spoilt[path] = 2
    with pytest.raises(tensors.CorruptFileError, match=path):
        _pull()
    assert not (models_dir / "org" / "model").exists()
    assert path not in {file.name.removesuffix(".part") for file in models_dir.rglob("*") if file.is_file()}


def test_busy_servers_are_asked_again(hub: fake.Hub) -> None:
    hub.statuses["/api/models/org/model/revision/main"] = [503, 429]
    hub.statuses[f"/org/model/resolve/{fake.COMMIT}/config.json"] = [500, 502]
    assert (_pull() / "config.json").read_bytes() == hub.files["config.json"]


def test_redirects_in_a_circle_are_named(hub: fake.Hub, other_address: str) -> None:
    hub.elsewhere, hub.goes_round = other_address, True
    with pytest.raises(remote.HubError, match="does not answer as a hub does"):
        _pull()


def test_a_file_without_an_end_does_not_fill_the_disk(hub: fake.Hub, models_dir: Path) -> None:
    hub.surplus = 10 << 20
    with pytest.raises(tensors.CorruptFileError, match="arrived damaged"):
        _pull()
    assert sum(path.stat().st_size for path in models_dir.rglob("*")) < 5 << 20


def test_the_hubs_own_manifest_is_not_ours(hub: fake.Hub) -> None:
    hub.files["infini.json"] = b'{"files": {}}'
    assert set(store.read_manifest(_pull())["files"]) == {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    }


def test_no_hub_at_all_is_named() -> None:
    with pytest.raises(remote.HubError, match="cannot be reached"):
        _pull(endpoint="http://127.0.0.1:9")


def test_an_address_that_is_no_hub_is_named(hub: fake.Hub) -> None:
    with pytest.raises(remote.HubError, match=r"there is no org/other"):
        _pull("org/other")
    with pytest.raises(remote.HubError, match=r"at nowhere"):
        _pull("org/model@nowhere")


@pytest.mark.parametrize(
    "fields",
    [
        {"lfs": "text"},
        {"lfs": [1]},
        {"lfs": {"sha256": 5}},
        {"size": -1, "blobId": 7},
        {"size": 10**400},
        {"size": True},
    ],
    ids=["text", "list", "sum", "negative", "huge", "truth"],
)
def test_a_listing_may_say_nonsense_about_a_file(
    fields: dict[str, object], hub: fake.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {"rfilename": "model.safetensors", **fields}
    monkeypatch.setattr(hub, "_listing", lambda: {"sha": hub.commit, "siblings": [row]})
    assert (_pull() / "model.safetensors").read_bytes() == hub.files["model.safetensors"]


def test_a_listing_without_an_end_is_refused(hub: fake.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "_MAX_LISTING", 1000)
    monkeypatch.setattr(hub, "_listing", lambda: {"siblings": ["x" * 100] * 100})
    with pytest.raises(remote.HubError, match="has no end"):
        _pull()


def test_odd_digits_in_headers_are_no_numbers(hub: fake.Hub) -> None:
    answer = httpx.Response(429, headers=[(b"retry-after", b"\xb2")])
    with pytest.raises(remote.Again) as caught:
        remote.check(answer, remote.hub("huggingface", environment={}), names.parse("org/model"))
    assert caught.value.after_s is None


@pytest.mark.parametrize("token", ["hf_\N{HORIZONTAL ELLIPSIS}secret", "hf_a\r\nX-Secret: b"])
def test_a_token_that_no_header_holds_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(errors.ValueMismatchError, match="the token cannot be sent") as caught:
        remote.hub("huggingface", token=token)
    assert "ecret" not in str(caught.value)


def test_too_little_space_is_named_before_anything_is_fetched(
    hub: fake.Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**9, 10**9, 65 << 20))
    with pytest.raises(errors.ValueMismatchError, match="too little space"):
        _pull()
    assert hub.fetched() == []


def test_two_pulls_of_a_model_do_not_mix(hub: fake.Hub, models_dir: Path) -> None:
    staging = models_dir / "org" / f".model.{fake.COMMIT}.part"
    staging.mkdir(parents=True)
    with folders.locked(staging), pytest.raises(errors.ValueMismatchError, match="another pull"):
        _pull()
    assert _pull().is_dir()


def test_offline_means_offline(hub: fake.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(remote.HubError, match="HF_HUB_OFFLINE"):
        _pull()
    assert not hub.seen


# --- tokens -----------------------------------------------------------------------------------


def test_a_token_is_sent_to_the_hub_and_not_where_it_redirects(hub: fake.Hub, other_address: str) -> None:
    hub.elsewhere = other_address
    found = _pull(token="secret")
    assert (found / "model.safetensors").read_bytes() == hub.files["model.safetensors"]
    sent = {path.split("/")[1]: "authorization" in headers for path, headers in hub.seen}
    assert sent == {"api": True, "org": True, "cdn": False}


def test_a_missing_token_is_named(hub: fake.Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.token = "secret"
    with pytest.raises(remote.HubError, match="not open to requests without a token") as caught:
        _pull()
    assert "HF_TOKEN" in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", "wrong")
    with pytest.raises(remote.HubError, match="not open to this token") as caught:
        _pull()
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("HF_TOKEN", " secret\n")
    assert _pull().is_dir()


def test_the_token_of_hugging_faces_tools_is_used(hub: fake.Hub, tmp_path: Path) -> None:
    hub.token = "stored"
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "token").write_text("stored\n")
    assert _pull().is_dir()


# --- names ------------------------------------------------------------------------------------

BAD = [
    "../x", "..%2fx", "/etc/passwd", "a/../b", "a/b/c", "a\\b", "C:\\x", "a\0b", "", ".", "..", "a/..",
    "a/.hidden", "-x", "a b", "a/b:", "a/b:../c", "a/b@../c", "a//b", "a/b\n", "a..b/c", "a" * 97, "a/b.",
    "http://x/y", "ä/b",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_a_name_that_is_a_path_is_refused(name: str, hub: fake.Hub) -> None:
    with pytest.raises(errors.ValueMismatchError, match="no name of a model"):
        names.parse(name)
    with pytest.raises(errors.ValueMismatchError, match="no name of a model"):
        _pull(name)
    with pytest.raises(errors.ValueMismatchError, match="no name of a model"):
        store.remove(name)
    assert not hub.seen


@pytest.mark.parametrize(
    "path",
    [
        "../x.json",
        "/x.json",
        "a/../../x.json",
        "a\\x.json",
        "a\0.json",
        "./x.json",
        "a//b.json",
        "c:x.json",
        "x./y.json",
    ],
)
def test_a_file_that_would_lie_elsewhere_is_refused(path: str, hub: fake.Hub, models_dir: Path) -> None:
    hub.files[path] = b"{}"
    with pytest.raises(errors.ValueMismatchError, match="cannot be stored"):
        _pull(include=["*"])
    assert hub.fetched() == []


def test_a_link_that_leads_out_of_the_store_is_refused(
    hub: fake.Hub, models_dir: Path, tmp_path: Path
) -> None:
    models_dir.mkdir()
    (tmp_path / "outside").mkdir()
    (models_dir / "org").symlink_to(tmp_path / "outside")
    with pytest.raises(errors.ValueMismatchError, match="outside"):
        _pull()


@pytest.mark.parametrize(
    ("path", "variant"),
    [
        ("model-Q4_K_M.gguf", "Q4_K_M"),
        ("model.Q8_0.gguf", "Q8_0"),
        ("sub/m-7b-UD-Q4_K_XL.gguf", "UD-Q4_K_XL"),
        ("m-F16-00001-of-00012.gguf", "F16"),
        ("config.json", None),
    ],
)
def test_variants_are_read_from_names(path: str, variant: str | None) -> None:
    assert store.variant_of(path) == variant


# --- the store --------------------------------------------------------------------------------


def _cache(tmp_path: Path) -> Path:
    folder = tmp_path / "hf" / "hub" / "models--other--small"
    for commit in ("aaa", "bbb"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        (folder / "snapshots" / commit / "model.safetensors").write_bytes(commit.encode())
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("aaa")
    return folder / "snapshots" / "aaa"


def test_models_of_the_store_and_of_the_cache_are_listed(
    hub: fake.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a path that is there is a model, so nothing may lie beside
    cached, pulled = _cache(tmp_path), _pull()
    found = hubs.models()
    assert [(model.name, model.where, model.kind) for model in found] == [
        ("org/model", "store", "safetensors"),
        ("other/small", "huggingface", "safetensors"),
    ]
    assert found[0].nbytes == sum(len(hub.files[path]) for path in found[0].files)
    assert hubs.find("org/model") == pulled
    assert hubs.find("other/small") == cached
    assert hubs.find(str(tmp_path)) == tmp_path
    assert hubs.find("org/nothing") is None and hubs.find("../not-there") is None


def test_a_gguf_model_is_found_as_its_file(hub: fake.Hub) -> None:
    hub.files = dict(GGUF)
    first = _pull("org/model:Q4_K_M")
    assert hubs.find("org/model") == first
    second = _pull("org/model:Q8_0")
    assert hubs.find("org/model") == first.parent
    assert hubs.find("org/model:q8_0") == second


def test_a_model_is_removed(hub: fake.Hub, models_dir: Path, tmp_path: Path) -> None:
    _pull()
    hubs.remove("org/model")
    assert list(models_dir.iterdir()) == []
    with pytest.raises(tensors.MissingFileError, match="not in the store"):
        hubs.remove("org/model")
    _cache(tmp_path)
    with pytest.raises(tensors.MissingFileError, match="Hugging Face's cache"):
        hubs.remove("other/small")


def test_one_variant_is_removed(hub: fake.Hub) -> None:
    hub.files = dict(GGUF)
    _pull("org/model:Q4_K_M")
    folder = _pull("org/model:Q8_0").parent
    hubs.remove("org/model:Q8_0")
    assert _contents(folder) == {"model-Q4_K_M.gguf", "infini.json"}
    hubs.remove("org/model:Q4_K_M")
    assert hubs.models() == []


def test_progress_counts_every_byte_once(hub: fake.Hub) -> None:
    hub.cuts["model.safetensors"] = [300_000]
    hub.spoilt["tokenizer.json"] = 1
    counts: dict[str, int] = {}
    ended: list[str] = []

    class Listener:
        def begin(self, files: object) -> None:
            pass

        def advance(self, path: str, nbytes: int) -> None:
            counts[path] = counts.get(path, 0) + nbytes

        def end(self, path: str) -> None:
            ended.append(path)

    _pull(progress=Listener())
    assert counts == {path: len(hub.files[path]) for path in sorted(ended)}


def test_a_replacement_that_was_killed_is_finished(hub: fake.Hub, models_dir: Path) -> None:
    folder = _pull()
    folder.rename(folder.with_name(f".model.{fake.COMMIT}.ready"))
    hub.seen.clear()
    assert (_pull() / "config.json").is_file()
    assert hub.fetched() == []


def test_checksums_are_gits_and_sha256(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"what is up, doc?")
    assert fetching.digest(tmp_path / "x", "blob") == "bd9dbf5aae1a3862dd1526723246b20206e5fc37"
    (tmp_path / "x").write_bytes(b"")
    assert fetching.digest(tmp_path / "x", "sha256").startswith("e3b0c44298fc1c14")


def test_progress_protocol_is_met() -> None:
    listener: pulling.Progress = pulling._Silent()
    listener.begin(())
