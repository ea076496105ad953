"""Records are made here by an independent trainer: numpy, every token of every prompt, gradients written out by hand."""

import io
import json
import pickle
import zipfile
from pathlib import Path

import jax
import numpy as np
import pytest

import icldyn.replay as replaying
from icldyn.cli import main
from icldyn.models.heads import Heads
from icldyn.objectives import fixed_prompts as fixed
from icldyn.replay import replay

REFERENCE = Path(__file__).parents[2] / "shared" / "reference"
P, N, D, H = 40, 5, 2, 2


def softmax(a):
    e = np.exp(a - a.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def slopes(w, Z, y, is_softmax, length):
    """m = mean (y - yhat)^2 and its gradient, yhat the label's entry of the query's row of attention."""
    P = len(y)
    M = w["key_query"] if "key_query" in w else np.einsum("hri,hrj->hij", w["query"], w["key"])
    p, z_q = w["value"][:, -1], Z[:, -1]
    logits = np.einsum("pi,hij,pmj->hpm", z_q, M, Z, optimize=True)
    said = np.einsum("hj,pmj->hpm", p, Z)
    a = softmax(logits) if is_softmax else logits / length
    yhat = (a * said).sum(axis=(0, 2))
    e = 2 * (yhat - y) / P
    centred = said - (a * said).sum(axis=2, keepdims=True)
    d_logits = e[None, :, None] * (a * centred if is_softmax else said / length)
    d_M = np.einsum("pi,hpm,pmj->hij", z_q, d_logits, Z, optimize=True)
    slope = {"value": np.zeros_like(w["value"])}
    slope["value"][:, -1] = np.einsum("p,hpm,pmj->hj", e, a, Z, optimize=True)
    if "key_query" in w:
        slope["key_query"] = d_M
    else:
        slope |= {"query": np.einsum("hij,hrj->hri", d_M, w["key"]), "key": np.einsum("hij,hri->hrj", d_M, w["query"])}
    return np.mean((y - yhat) ** 2), slope


def record(seed=0, R=None, T=40, lr=0.05, scale=0.3, dtype=np.float64, is_softmax=False, divide=True, finals=True):
    """A recorded run: arrays by name."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(P, N + 1, D)) * np.sqrt([1.0, 0.3])
    y = np.einsum("pnd,pd->pn", x, rng.normal(size=(P, D)))
    Z = np.concatenate([x, y[..., None]], axis=2).astype(dtype)
    targets = Z[:, -1, -1].copy()
    Z[:, -1, -1] = 0
    kinds = {"key_query": (H, D + 1, D + 1)} if R is None else {"key": (H, R, D + 1), "query": (H, R, D + 1)}
    w = {n: (scale * rng.normal(size=s)).astype(dtype) for n, s in ({"value": (H, D + 1, D + 1)} | kinds).items()}
    init, losses = {f"init_{n}": a for n, a in w.items()}, []
    for _ in range(T):
        loss, slope = slopes(w, Z, targets, is_softmax, dtype(N if divide else 1))
        losses.append(loss)
        w = {n: w[n] - dtype(lr) * slope[n] for n in w}
    last = {f"final_{n}": a for n, a in w.items()} if finals else {}
    facts = {"lr": np.float64(lr), "softmax": np.bool(is_softmax), "divide_by_length": np.bool(divide)}
    return {"prompts": Z, "targets": targets, "loss": np.array(losses, dtype=np.float64), **facts, **init, **last}


def save(path, arrays, compressed=False):
    (np.savez_compressed if compressed else np.savez)(path, **arrays)
    return path


@pytest.fixture(autouse=True)
def short_calls(monkeypatch):
    """A run of 40 steps takes four calls."""
    monkeypatch.setattr(replaying, "MOST_STEPS", 16)


@pytest.fixture(scope="module")
def plain():
    return record()


@pytest.fixture(scope="module")
def ladder():
    """Runs in float32 that leave saddles: rank one, small weights."""
    return [record(seed=s, R=1, T=700, lr=0.05, scale=0.1, dtype=np.float32) for s in range(4)]


@pytest.mark.parametrize(
    "settings",
    [{}, {"R": 4, "divide": False, "lr": 0.003}, {"is_softmax": True, "R": 2, "lr": 0.2}],
    ids=["linear merged", "linear separate, rank above D + 1, sums not divided", "softmax separate"],
)
def test_a_float64_run_is_reproduced_to_round_off(settings, tmp_path):
    found = replay(save(tmp_path / "a.npz", record(**settings)))
    assert found.precision == "float64" and found.within
    assert found.gap.max() < 1e-12  # 40 steps of a smooth run, each rounded at 1e-16
    assert found.record["loss"][-1] < 0.9 * found.record["loss"][0]  # it has trained
    assert found.final_step == 40 and set(found.finals) == {f"final_{n}" for n in found.record.weights}
    assert max(gap for gap, _ in found.finals.values()) < 1e-12
    for name, a in found.weights.items():
        np.testing.assert_allclose(a, found.record[name], rtol=1e-9, atol=1e-13)  # entry by entry


def test_float32_runs_through_saddles_lie_within_the_band_which_grows_where_they_do(ladder, tmp_path):
    for arrays in ladder:
        found = replay(save(tmp_path / "a.npz", arrays))
        assert found.precision == "float32" and found.within
        assert found.band.max() > 2 * found.band[0]  # the saddle amplifies
        assert found.band.max() < 1e-4  # and yet the band says something: 30 times the gaps of 3e-7 to 2e-6
        assert (found.gap / found.band).max() < 1 / 2  # as q = 5 root mean squares are far out


@pytest.mark.parametrize("change", ["lr", "targets", "weight", "final"])
def test_a_run_that_is_off_by_one_part_in_a_thousand_is_outside(change, ladder, tmp_path):
    arrays = dict(ladder[0])
    if change == "lr":
        arrays["lr"] = arrays["lr"] * 1.001
    elif change == "targets":
        arrays["targets"] = arrays["targets"] * np.float32(1.001)
    elif change == "weight":
        arrays["init_value"] = arrays["init_value"] * np.float32(1.001)
    else:
        arrays["final_key"] = arrays["final_key"] * np.float32(1.001)
    found = replay(save(tmp_path / "a.npz", arrays))
    assert not found.within
    assert bool(len(found.outside)) == (change != "final")


def test_what_half_precision_forgot_is_in_the_band(ladder, tmp_path):
    stored = {n: a.astype(np.float16) if a.dtype == np.float32 else a for n, a in ladder[1].items()}
    found = replay(save(tmp_path / "a.npz", stored))
    assert found.precision == "float32" and found.within and found.gap.max() > 1e-5
    assert not replay(save(tmp_path / "b.npz", stored | {"lr": 1.2 * stored["lr"]})).within


def test_float64_arrays_that_float32_holds_exactly_are_known_as_a_float32_run(ladder, tmp_path):
    arrays = {n: a.astype(np.float64) if a.dtype == np.float32 else a for n, a in ladder[0].items()}
    found = replay(save(tmp_path / "a.npz", arrays))
    assert found.precision == "float32" and found.within


def test_both_routes_of_linear_attention_are_one_curve(plain, tmp_path, monkeypatch):
    path = save(tmp_path / "a.npz", plain)
    folded = replay(path)
    monkeypatch.setattr(replaying, "MOST_FOLDED", 0)
    prompts = replay(path)
    assert (folded.route, prompts.route) == ("folded", "prompts")
    np.testing.assert_allclose(prompts.loss, folded.loss, rtol=1e-12)  # round-off


def test_least_squares_keeps_weak_directions_and_small_losses():
    """Inputs whose scales differ by 10^5, and labels that a set of weights answers up to 10^-7 of them."""
    rng = np.random.default_rng(0)
    model = Heads(D=3, H=2, zero_blocks=False)
    P, D = 200, 3
    x = rng.normal(size=(P, N, D)) * [1, 1e-2, 1e-5]
    y, x_q = rng.normal(size=(P, N)), rng.normal(size=(P, D)) * [1, 1e-2, 1e-5]
    params = {n: rng.normal(size=s) for n, s in model.shapes.items()}
    yhat = np.asarray(jax.jit(model.apply)(params, x, y[..., None], x_q))[:, 0]
    y_q = yhat * (1 + 1e-7 * rng.normal(size=P))
    for prompts in (P, 7):  # more and fewer than folded weights
        problem = fixed.least_squares(model, x[:prompts], y[:prompts], x_q[:prompts], y_q[:prompts], N)
        expected = np.mean((y_q - yhat)[:prompts] ** 2) / 2
        np.testing.assert_allclose(
            problem.loss(params), expected, rtol=1e-6
        )  # 1e-16 / 1e-7 of an answer, and its root sum
        assert len(problem.R) <= min(prompts, D * 10 + 1)


def test_chunks_of_prompts_change_neither_loss_nor_slope(monkeypatch):
    rng = np.random.default_rng(0)
    model = Heads(D=D, H=H, zero_blocks=False)
    data = rng.normal(size=(P, N, D)), rng.normal(size=(P, N)), rng.normal(size=(P, D)), rng.normal(size=P)
    params = {n: rng.normal(size=s) for n, s in model.shapes.items()}
    whole = fixed.fixed_prompts(model, *data)
    monkeypatch.setattr(fixed, "TOKENS", 7 * H * (N + 1))
    cut = fixed.fixed_prompts(model, *data)
    assert cut.x.shape[:2] == (6, 7)  # the last one filled up
    for one, two in zip(
        *(jax.tree.leaves(jax.jit(jax.value_and_grad(o.loss))(params)) for o in (whole, cut)), strict=True
    ):
        np.testing.assert_allclose(one, two, rtol=1e-12)  # another order of summation


def test_the_verb_prints_writes_and_answers_with_its_exit_code(plain, tmp_path, capsys):
    path, out, figure = save(tmp_path / "a.npz", plain), tmp_path / "out.npz", tmp_path / "gap.png"
    assert main(["replay", str(path), "--json", "--out", str(out), "--figure", str(figure)]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["verdict"] == "within" and told["largest_gap"] < 1e-12 and told["wrote"] == [str(figure), str(out)]
    assert (told["H"], told["D"], told["N"], told["P"], told["T"]) == (H, D, N, P, 40)
    assert figure.stat().st_size > 20_000
    with np.load(out) as kept:
        np.testing.assert_allclose(kept["replayed"], plain["loss"], rtol=1e-12)
        np.testing.assert_allclose(kept["final_value"], plain["final_value"], rtol=1e-10)
    assert main(["replay", str(path), "--quiet"]) == 0
    assert "within the band of round-off" in capsys.readouterr().out
    save(path, plain | {"lr": plain["lr"] * 1.01})
    assert main(["replay", str(path), "--quiet"]) == 1
    assert "outside, first at step 1 the band" in capsys.readouterr().out


def test_known_misunderstandings_are_named(plain, tmp_path):
    half = replay(save(tmp_path / "a.npz", plain | {"loss": plain["loss"] / 2}))
    assert not half.within and "carry the 1/2" in half.facts["hint"]
    after = replay(save(tmp_path / "b.npz", plain | {"loss": np.append(plain["loss"][1:], 0.5)}))
    assert not after.within and "after each step" in after.facts["hint"]
    other = replay(save(tmp_path / "c.npz", plain | {"divide_by_length": np.bool(False)}))
    assert not other.within and "a convention differ" in other.facts["hint"]


def test_final_weights_before_the_last_step_are_recognised(plain, tmp_path):
    shorter = {n: a for n, a in record(T=39).items() if n.startswith("final")}
    found = replay(save(tmp_path / "a.npz", plain | shorter))
    assert found.within and found.final_step == 39


def test_a_replay_that_diverges_is_outside_and_told_in_json(plain, tmp_path, capsys):
    path = save(tmp_path / "a.npz", plain | {"lr": np.float64(1e6)})
    assert main(["replay", str(path), "--json", "--figure", str(tmp_path / "gap.svg")]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["largest_gap"] is None and told["verdict"] == "outside"


def test_other_spellings_of_the_same_record_are_the_same_run(plain, tmp_path):
    other = {
        n: np.asfortranarray(a.astype(">f8")) if n != "lr" and a.dtype == np.float64 else a for n, a in plain.items()
    }
    other |= {"lr": plain["lr"].reshape(1), "targets": plain["targets"].reshape(P, 1)}
    other |= {"softmax": np.array([0], np.uint8), "divide_by_length": np.uint8(1), "note": np.array("a run")}
    first = replay(save(tmp_path / "a.npz", plain))
    second = replay(save(tmp_path / "b.npz", other, compressed=True))
    np.testing.assert_array_equal(first.loss, second.loss)
    assert second.record.left_out == ("note",)


class Bomb:
    opened = False

    def __reduce__(self):
        return setattr, (Bomb, "opened", True)


def header(text):
    """Bytes of an npy file with this header and no numbers."""
    out = io.BytesIO()
    out.write(b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode())
    return out.getvalue()


CHANGED = {
    "prompts missing": ({"prompts": None}, "must hold `prompts`, but does not"),
    "weights missing": ({"init_key_query": None}, "`init_key_query` (or `init_key` and `init_query`)"),
    "query missing": ({"init_key_query": None, "init_key": np.ones((H, 1, D + 1))}, "must hold `init_query`"),
    "both": ({"init_key": np.ones((H, 1, D + 1))}, "merged or separate"),
    "targets": ({"targets": np.ones(P + 1)}, f"`targets` must have shape ({P},), but has shape ({P + 1},)"),
    "two targets": ({"targets": np.ones((P, 2))}, f"`targets` must have shape ({P}, 1)"),
    "value": ({"init_value": np.ones((H, D, D))}, "`init_value` must have shape (2, 3, 3)"),
    "heads": ({"init_value": np.ones((H + 1, D + 1, D + 1))}, "`init_value` must have shape (2, 3, 3)"),
    "no heads": ({"init_key_query": np.ones((0, D + 1, D + 1))}, "`init_key_query` must have shape (H, D+1, D+1)"),
    "key_query": ({"init_key_query": np.ones((H, D + 1, D))}, "`init_key_query` must have shape (2, 3, 3)"),
    "final": ({"final_value": np.ones((H, D + 1))}, "`final_value` must have shape (2, 3, 3)"),
    "flat prompts": ({"prompts": np.ones((P, 3))}, "`prompts` must have shape (P, N+1, D+1)"),
    "no context": ({"prompts": np.zeros((P, 1, D + 1))}, "at least one prompt of a pair and the query"),
    "no losses": ({"loss": np.ones(0)}, "`loss` must have shape (T,)"),
    "nan": ({"loss": np.array([1.0, np.nan])}, "`loss` must be finite, but 1 of 2 entries are not"),
    "infinite": ({"init_value": np.full((H, D + 1, D + 1), np.inf)}, "`init_value` must be finite"),
    "negative": ({"loss": np.array([1.0, -1.0])}, "`loss` must not be negative"),
    "label": ({"prompts": np.ones((P, N + 1, D + 1))}, f"its label 0, but {P} of {P} labels are not 0"),
    "lr zero": ({"lr": np.float64(0)}, "`lr` must be positive and finite, but is 0.0"),
    "lr negative": ({"lr": np.float64(-1)}, "`lr` must be positive"),
    "lrs": ({"lr": np.ones(3)}, "`lr` must have shape ()"),
    "softmax": ({"softmax": np.int64(1)}, "`softmax` must be a bool (or 0 or 1 as uint8), but holds int64"),
    "softmax 2": ({"softmax": np.uint8(2)}, "`softmax` must be 0 or 1, but is 2"),
    "text": ({"loss": np.array(["1", "2"])}, "`loss` must hold float16, float32 or float64 numbers, but holds <U1"),
    "complex": ({"prompts": np.zeros((P, N + 1, D + 1), complex)}, "`prompts` must hold float16"),
    "integers": ({"init_value": np.ones((H, D + 1, D + 1), int)}, "`init_value` must hold float16"),
    "objects": ({"note": np.array([Bomb()], dtype=object)}, "holds Python objects, which are never unpickled"),
}


@pytest.mark.parametrize("case", CHANGED)
def test_a_record_that_is_none_is_refused_in_one_sentence(case, plain, tmp_path, capsys):
    changes, sentence = CHANGED[case]
    path = save(tmp_path / "a.npz", {n: a for n, a in (plain | changes).items() if a is not None})
    assert main(["replay", str(path)]) == 2
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1 and not out and not Bomb.opened


HEADERS = {
    "400 GB": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (100000000000,)}\n",
        "must hold what its header claims",
    ),
    "negative": ("{'descr': '<f4', 'fortran_order': False, 'shape': (-1,)}\n", "must hold what its header claims"),
    "code": ("__import__('os').abort()\n", "`loss` must be a numpy array, but cannot be read"),
    "long": (
        "{'descr': '<f4', 'fortran_order': False, 'shape': (" + "1," * 9000 + ")}\n",
        "`loss` must be a numpy array",
    ),
    "nested": ("[" * 9000 + "\n", "`loss` must be a numpy array"),
}


@pytest.mark.parametrize("case", HEADERS)
def test_headers_that_lie_are_refused_before_numbers_are_read(case, plain, tmp_path, capsys):
    text, sentence = HEADERS[case]
    path = save(tmp_path / "a.npz", {n: a for n, a in plain.items() if n != "loss"})
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("loss.npy", header(text))
    assert main(["replay", str(path)]) == 2
    assert sentence in capsys.readouterr().err


def test_files_that_are_no_archive_or_too_large_are_refused(plain, tmp_path, capsys, monkeypatch):
    def refused(path, sentence):
        assert main(["replay", str(path)]) == 2
        err = capsys.readouterr().err
        assert sentence in err and err.count("\n") == 1

    refused(tmp_path / "none.npz", "`file` must be an npz file")
    refused(tmp_path, "`file` must be an npz file")
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    refused(tmp_path / "pickle.npz", "must be a whole npz file")
    assert not Bomb.opened
    whole = save(tmp_path / "a.npz", plain).read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "cut.npz", "must be a whole npz file")
    middle = whole.index(b"prompts.npy") + 2000
    (tmp_path / "flipped.npz").write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    refused(tmp_path / "flipped.npz", "must be a whole npz file")
    with zipfile.ZipFile(tmp_path / "empty.npz", "w"):
        pass
    refused(tmp_path / "empty.npz", "must hold 1 to 100 arrays, but holds 0")
    monkeypatch.setattr("icldyn.store.recorded.MOST_BYTES", 1000)
    refused(tmp_path / "a.npz", "must hold at most 1,000 bytes")


def test_options_that_cannot_be_are_refused_before_any_work(plain, tmp_path, capsys):
    path = str(save(tmp_path / "a.npz", plain))
    for words, sentence in (
        ([], "`file` must be a recorded run, but is missing"),
        ([path, "--dtype", "float16"], "`dtype` must be one of float32, float64"),
        ([path, "--figure", "a.txt"], "`figure` must end in .png or .pdf or .svg"),
        ([path, "--out", str(tmp_path / "no" / "a.npz")], "`out` must be a file in a folder that exists"),
        ([path, "--out", path], "`out` must be another file than the record"),
    ):
        assert main(["replay", *words]) == 2
        assert sentence in capsys.readouterr().err


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the public records do not lie beside this checkout")
@pytest.mark.parametrize("name", ["zhang2025_merged", "zhang2025_separate"])
def test_public_runs_of_linear_attention_are_reproduced(name):
    found = replay(REFERENCE / f"{name}.npz")
    assert found.within and found.gap[found.away].max() < 1e-4
    assert found.away.mean() > 0.9  # saddles are few


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="the public records do not lie beside this checkout")
def test_the_beginning_of_a_public_run_of_softmax_attention_is_reproduced(tmp_path):
    with np.load(REFERENCE / "zhang2025_merged_softmax.npz") as kept:
        arrays = {n: kept[n][:120] if n == "loss" else kept[n] for n in kept if not n.startswith("final")}
    found = replay(save(tmp_path / "a.npz", arrays))
    assert found.within and found.gap.max() < 1e-6  # a few float32 roundings of the recorded number
