"""`icldyn measure` on files that the tests make in the layouts of other people."""

import csv
import json
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import icldyn as ic
from icldyn.cli import main
from icldyn.measure import measure
from icldyn.store.attention_weights import Naming, checkpoint, layers, read

L, H, D, R = 2, 4, 16, 3


def heads(seed):
    """W_Q, W_K, W_V (L, H, D, R), W_O (L, H, R, D)."""
    rng = np.random.default_rng(seed)
    Q, K, V, O = rng.normal(size=(4, L, H, D, R))
    return Q, K, V, O.swapaxes(2, 3)


def side_by_side(W):
    """(H, D, R) -> (D, H R): heads one after another in the columns."""
    return np.concatenate(list(W), axis=1)


def gpt2(Q, K, V, O, prefix="transformer."):
    out = {"wte.weight": np.ones((5, D))}
    for i in range(L):
        fused = np.concatenate([side_by_side(W[i]) for W in (Q, K, V)], axis=1)
        out[f"{prefix}h.{i}.attn.c_attn.weight"] = fused
        out[f"{prefix}h.{i}.attn.c_proj.weight"] = np.concatenate(list(O[i]), axis=0)
        out[f"{prefix}h.{i}.attn.c_attn.bias"] = np.ones(3 * D)
    return out


def nano_gpt(*all_heads):
    return {name: a.T for name, a in gpt2(*all_heads).items()}


def transformer_lens(Q, K, V, O):
    return {f"blocks.{i}.attn.W_{n}": W[i] for i in range(L) for n, W in zip("QKVO", (Q, K, V, O), strict=True)}


def neox(Q, K, V, O):
    out = {}
    for i in range(L):
        rows = [W[i, h].T for h in range(H) for W in (Q, K, V)]
        out[f"gpt_neox.layers.{i}.attention.query_key_value.weight"] = np.concatenate(rows)
        out[f"gpt_neox.layers.{i}.attention.dense.weight"] = np.concatenate(list(O[i])).T
    return out


def llama(Q, K, V, O):
    out = {}
    for i in range(L):
        for name, W in zip("qkv", (Q, K, V), strict=True):
            out[f"model.layers.{i}.self_attn.{name}_proj.weight"] = side_by_side(W[i]).T
        out[f"model.layers.{i}.self_attn.o_proj.weight"] = np.concatenate(list(O[i])).T
    return out


def plain(Q, K, V, O):
    return dict(zip(("W_Q", "W_K", "W_V", "W_O"), (Q, K, V, O), strict=True))


def square_heads(seed):
    """Heads with H R = D, as GPT-2 has."""
    rng = np.random.default_rng(seed)
    Q, K, V, O = rng.normal(size=(4, L, H, D, D // H))
    return Q, K, V, O.swapaxes(2, 3)


def write(path, arrays):
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        np.savez(path, **arrays)
    else:
        save_file({name: np.ascontiguousarray(a) for name, a in arrays.items()}, path)


def told(capsys, *words):
    code = main(["measure", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.mark.parametrize("ending", ["npz", "safetensors"])
@pytest.mark.parametrize("layout", [gpt2, nano_gpt, transformer_lens, neox, llama, plain])
def test_every_layout_gives_back_the_heads_it_was_made_from(layout, ending, tmp_path):
    wanted = square_heads(0)
    write(tmp_path / f"model.{ending}", layout(*wanted))
    one, naming = checkpoint(tmp_path / f"model.{ending}"), Naming(heads=H)
    assert layers(one, naming) == [0, 1]
    for i in range(L):
        found = read(one, i, naming)
        for a, b in zip(wanted, (found.W_Q, found.W_K, found.W_V, found.W_O), strict=True):
            np.testing.assert_array_equal(a[i], b)


def test_heads_that_share_keys_are_given_theirs(tmp_path):
    Q, K, V, O = heads(1)
    arrays = llama(Q, K, V, O)
    for i in range(L):
        for name, W in (("k", K), ("v", V)):
            arrays[f"model.layers.{i}.self_attn.{name}_proj.weight"] = side_by_side(W[i, :2]).T
    write(tmp_path / "model.npz", arrays)
    found = read(checkpoint(tmp_path / "model.npz"), 1, Naming(heads=H))
    np.testing.assert_array_equal(found.W_K, K[1, [0, 0, 1, 1]])
    np.testing.assert_array_equal(found.W_Q, Q[1])


def test_names_that_are_not_known_are_given_by_pattern(tmp_path):
    Q, K, V, O = heads(2)
    names = ("enc/{layer}/q", "enc/{layer}/k", "enc/{layer}/v", "enc/{layer}/o")
    by_head = {n.format(layer=10 * i): W[i] for n, W in zip(names, (Q, K, V, O), strict=True) for i in range(L)}
    torch = {name: side_by_side(W).T if name[-1] != "o" else np.concatenate(list(W)).T for name, W in by_head.items()}
    write(tmp_path / "a.npz", by_head)
    write(tmp_path / "b.npz", torch)
    write(tmp_path / "c.npz", {name: W.T for name, W in torch.items()})
    for file, naming in (("a", Naming(names)), ("b", Naming(names, H, True)), ("c", Naming(names, H))):
        one = checkpoint(tmp_path / f"{file}.npz")
        assert layers(one, naming) == [0, 10]
        np.testing.assert_array_equal(read(one, 10, naming).W_O, O[1])
        np.testing.assert_array_equal(read(one, 10, naming).W_V, V[1])


def test_numbers_of_a_folder_are_those_of_the_whole_matrices(tmp_path, capsys):
    early, late = square_heads(3), square_heads(4)
    for step, these in ((900, early), (10000, late)):  # by number, not by letter
        write(tmp_path / f"checkpoint-{step}/model.safetensors", gpt2(*these, prefix=""))
    (tmp_path / "config.json").write_text(json.dumps({"n_head": H}))
    code, out, err = told(capsys, tmp_path, "--heads", "--json")
    found = json.loads(out)
    assert code == 0 and err == "" and [row["step"] for row in found["rows"]] == [900] * L * H + [10000] * L * H
    assert found["chance"] == pytest.approx(np.sqrt(1 - 4 / 16)) and found["D"] == 16 and found["R"] == 4
    (Q, K, V, O), (Q_inf, K_inf, V_inf, O_inf) = early, late
    row = next(row for row in found["rows"] if row["step"] == 900 and row["layer"] == 1 and row["head"] == 2)
    at = (1, 2)
    QK, QK_inf, OV, OV_inf = Q[at] @ K[at].T, Q_inf[at] @ K_inf[at].T, V[at] @ O[at], V_inf[at] @ O_inf[at]
    for kind, M, M_inf in (("qk", QK, QK_inf), ("ov", OV, OV_inf)):
        s = np.linalg.svd(M, compute_uv=False)[: D // H]
        for k in range(3):
            p = s[k:] / s[k:].sum()
            assert row[f"{kind}_er_{k}"] == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
        assert row[f"{kind}_norm"] == pytest.approx(np.linalg.norm(M), rel=1e-10)
        leave = M_inf - M_inf @ np.linalg.pinv(M, rcond=1e-9) @ M, M_inf - M @ np.linalg.pinv(M, rcond=1e-9) @ M_inf
        sides = ("key", "query") if kind == "qk" else ("write", "read")
        for side, left in zip(sides, leave, strict=True):
            assert row[f"{kind}_{side}"] == pytest.approx(np.linalg.norm(left) / np.linalg.norm(M_inf), rel=1e-9)
    assert max(row["qk_key"] for row in found["rows"] if row["step"] == 10000) < 1e-10


def test_a_layer_is_the_mean_of_its_heads_and_a_table_is_printed_and_written(tmp_path, capsys):
    for step in (1, 2, 10):
        write(tmp_path / f"w{step}.npz", transformer_lens(*heads(step)))
    found = measure(tmp_path)
    assert [one.step for one in found.checkpoints] == [1, 2, 10] and found.values["qk_er_0"].shape == (3, L, H)
    np.testing.assert_allclose(found.by_layer["ov_read"], found.values["ov_read"].mean(axis=2))
    table, picture = tmp_path / "table.csv", tmp_path / "figure.png"
    code, out, _ = told(capsys, tmp_path, "--out", table, "--figure", picture)
    assert code == 0 and out.splitlines()[0].split() == [
        "checkpoint", "layer", "QK", "er_0", "QK", "er_1", "QK", "er_2", "QK", "key", "QK", "query",
        "OV", "er_0", "OV", "er_1", "OV", "er_2", "OV", "write", "OV", "read",
    ]  # fmt: skip
    assert (
        "distances are to w10.npz; those of random heads are 0.901" in out and "its own is 0, converged or not" in out
    )
    with table.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * L and float(rows[1]["qk_er_2"]) == pytest.approx(found.by_layer["qk_er_2"][0, 1])
    assert picture.stat().st_size > 20_000


def test_the_reference_may_lie_elsewhere(tmp_path, capsys):
    write(tmp_path / "run/w1.npz", plain(*heads(1)))
    write(tmp_path / "later/w9.npz", plain(*heads(9)))
    code, out, _ = told(capsys, tmp_path / "run", "--reference", tmp_path / "later/w9.npz")
    assert code == 0 and "distances are to w9.npz" in out and "its own" not in out
    assert (measure(tmp_path / "run", reference=tmp_path / "later/w9.npz").values["qk_key"] > 0.5).all()


def test_half_precision_is_read_and_ranks_below_its_rounding_are_none(tmp_path):
    Q, K, V, O = heads(5)
    K[0, 0] = K[0, 0, :, :1] * np.array([1.0, 2.0, 4.0])  # rank 1, to the last bit in bfloat16
    arrays = {name: a.astype(ml_dtypes.bfloat16) for name, a in transformer_lens(Q, K, V, O).items()}
    write(tmp_path / "w1.safetensors", arrays)
    found = measure(tmp_path)
    rows = found.rows(heads=True)
    assert rows[0]["qk_er_0"] == pytest.approx(1, abs=1e-6) and rows[0]["qk_er_1"] is None and rows[1]["qk_er_1"] > 1
    assert found.by_layer["qk_er_1"][0, 0] == pytest.approx(np.mean([row["qk_er_1"] for row in rows[1:H]]))


def test_heads_as_wide_as_the_model_have_no_distance_but_to_a_cut_rank(tmp_path, capsys):
    Q, K = np.random.default_rng(6).normal(size=(2, 1, 2, 5, 5))
    write(tmp_path / "w1.npz", plain(Q, K, Q, K))
    write(tmp_path / "w2.npz", plain(K, Q, K, Q))
    code, out, _ = told(capsys, tmp_path)
    assert code == 0 and "none says anything: a head spans the whole space" in out
    assert measure(tmp_path).rows()[0]["qk_key"] is None
    assert 0 < measure(tmp_path, rank=2).rows()[0]["qk_key"] < 1


def lonely(folder):
    pass


def unknown(folder):
    np.savez(folder / "w1.npz", a=np.ones(3), b=np.ones(2))


def headless(folder):
    np.savez(folder / "w1.npz", **gpt2(*square_heads(0)))


def incomplete(folder):
    arrays = transformer_lens(*heads(0))
    del arrays["blocks.1.attn.W_K"]
    np.savez(folder / "w1.npz", **arrays)


def of_other_shape(folder):
    np.savez(folder / "w1.npz", **transformer_lens(*square_heads(0)))
    np.savez(folder / "w2.npz", **transformer_lens(*heads(0)))


def with_a_hole(folder):
    Q, K, V, O = heads(0)
    V[1, 0, 0, 0] = np.nan
    np.savez(folder / "w1.npz", **transformer_lens(Q, K, V, O))


def pickled(folder):
    np.savez(folder / "w1.npz", W_Q=np.array([{"a": 1}], dtype=object), allow_pickle=True)


def torn(folder):
    write(folder / "w1.safetensors", transformer_lens(*heads(0)))
    whole = (folder / "w1.safetensors").read_bytes()
    (folder / "w1.safetensors").write_bytes(whole[: len(whole) // 2])


def no_zip(folder):
    (folder / "w1.npz").write_bytes(b"text")


def in_parts(folder):
    write(folder / "model-00001-of-00002.safetensors", transformer_lens(*heads(0)))


def quantised(folder):
    arrays = {name: np.round(a).astype(np.int8) for name, a in transformer_lens(*heads(0)).items()}
    np.savez(folder / "w1.npz", **arrays)


def ambiguous(folder):
    np.savez(
        folder / "w1.npz", **{f"{side}.{n}": a for side in ("encoder", "decoder") for n, a in plain(*heads(0)).items()}
    )


def fewer_layers(folder):
    arrays = transformer_lens(*heads(0))
    np.savez(folder / "w2.npz", **arrays)
    np.savez(folder / "w1.npz", **{n: a for n, a in arrays.items() if n.startswith("blocks.0")})


@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lonely, "Argument `folder` must hold .npz or .safetensors files, but"),
        (unknown, "w1.npz: Argument `names` must say where W_Q, W_K, W_V and W_O are"),
        (headless, "w1.npz: Argument `num-heads` must be given: weights in the layout of GPT-2 do not say"),
        (incomplete, "w1.npz: Argument `folder` must hold blocks.{layer}.attn.W_K of every layer, but one is missing."),
        (
            of_other_shape,
            "w1.npz: Argument `W_Q` must have shape (4, 16, 3), as in the reference, but has shape (4, 16, 4).",
        ),
        (with_a_hole, "w1.npz: Argument `blocks.1.attn.W_V` must be finite, but 1 entries are not."),
        (pickled, "must hold numbers, but holds Python objects, which are never unpickled."),
        (torn, "w1.safetensors: it must be a whole .safetensors file, but is not"),
        (no_zip, "w1.npz: it must be a whole .npz file, but is not"),
        (in_parts, "Argument `folder` must hold each model in one file"),
        (quantised, "w1.npz: Argument `blocks.0.attn.W_Q` must hold floating-point numbers, but holds int8."),
        (ambiguous, "w1.npz: Argument `names` must tell encoder.W_Q from decoder.W_Q"),
        (fewer_layers, "w1.npz: Argument `folder` must hold layer 1 in every file, but this one does not."),
    ],
)
def test_a_folder_that_cannot_be_measured_is_one_sentence_and_exit_code_2(made, sentence, tmp_path, capsys):
    made(tmp_path)
    code, out, err = told(capsys, tmp_path)
    assert code == 2 and sentence in err and err.count("\n") == 1 and "Traceback" not in err and out == ""


def test_settings_that_do_not_fit_the_heads_are_refused(tmp_path, capsys):
    write(tmp_path / "w1.npz", gpt2(*square_heads(0)))
    assert "must hold 5 heads of one width" in told(capsys, tmp_path, "--num-heads", 5)[2]
    assert "Argument `rank` must be at most 4, but is 9" in told(capsys, tmp_path, "--num-heads", H, "--rank", 9)[2]
    assert "Argument `reference` must be an .npz or" in told(capsys, tmp_path, "--reference", tmp_path / "no.npz")[2]


def test_a_lying_header_is_refused_before_numbers_are_read(tmp_path):
    path = tmp_path / "w1.npz"
    with zipfile.ZipFile(path, "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000, 1000, 2), }".ljust(117) + b"\n"
        archive.writestr("W_Q.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 8)
    with pytest.raises(ic.BadArgument, match="must hold what its header claims"):
        measure(tmp_path)
