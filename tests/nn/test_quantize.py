"""`nn.quantize`: linear layers that keep their weights in few bits."""

import numpy as np
import pytest

import infini as inf
import infini.numpy as inp
from infini import io, nn, quantization, random
from infini.testing import assert_close


def model():
    first, second = random.split(random.key(0))
    return nn.Sequential(nn.Linear(64, 32, key=first), nn.ReLU(), nn.Linear(32, 8, key=second))


def dense(layer):
    return layer.replace(weight=layer.weight.dequantize())


@pytest.mark.parametrize("scheme", ["Q8_0", "int8", quantization.int4(32, zero_point=True)], ids=str)
def test_a_quantized_model_computes_with_the_numbers_of_its_weights(scheme):
    found, x = nn.quantize(model(), scheme), random.normal(random.key(1), (4, 64))
    expected = nn.Sequential(dense(found[0]), nn.ReLU(), dense(found[2]))(x)
    assert_close(inf.jit(lambda m, x: m(x))(found, x), expected, "program")


def test_layers_are_chosen_by_name():
    found = nn.quantize(model(), "Q8_0", where=lambda name, layer: name == "0")
    assert isinstance(found[0].weight, quantization.QuantizedArray)
    assert not isinstance(found[2].weight, quantization.QuantizedArray)
    again = nn.quantize(found, "Q4_0")
    assert (str(again[0].weight.scheme), str(again[2].weight.scheme)) == ("Q8_0", "Q4_0")


def test_a_layer_whose_rows_do_not_fit_is_named():
    with pytest.raises(ValueError, match=r"nn.quantize: 2 cannot be stored as int4:64:f32"):
        nn.quantize(model(), "int4")


def test_a_model_without_layers_to_quantize_is_refused():
    with pytest.raises(ValueError, match="found no layer"):
        nn.quantize(nn.Sequential(nn.ReLU()), "int8")
    with pytest.raises(ValueError, match="`where` chose none"):
        nn.quantize(model(), "int8", where=lambda name, layer: False)


def test_state_dictionaries_and_files_keep_the_bytes(tmp_path):
    found = nn.quantize(model(), "Q4_1")
    state = found.state_dict()
    assert list(state)[:3] == ["0.weight.blocks", "0.weight.scales", "0.weight.minima"]
    io.write_tensors(tmp_path / "m.safetensors", {key: np.asarray(x) for key, x in state.items()})
    empty = nn.quantize(inf.tree.map(inp.zeros_like, model()), "Q4_1")
    loaded = empty.load_state_dict(io.read_tensors(tmp_path / "m.safetensors"))
    for a, b in zip(inf.tree.leaves(loaded), inf.tree.leaves(found), strict=True):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_to_another_dtype_leaves_the_scales():
    found = nn.quantize(model(), "Q8_0").to("bfloat16")
    assert found[0].weight.scales.dtype == np.float16
    assert found[0].bias.dtype == found[0].weight.dtype == "bfloat16"
    assert found(inp.ones((2, 64), "bfloat16")).dtype == "bfloat16"
    assert found.to(inf.devices()[0])[0].weight.blocks.dtype == np.uint8


def test_biases_train_while_the_weights_stay():
    found, x = nn.quantize(model(), "Q8_0"), random.normal(random.key(1), (4, 64))

    def loss(biases):
        layers = [found[0].replace(bias=biases[0]), nn.ReLU(), found[2].replace(bias=biases[1])]
        return (nn.Sequential(*layers)(x) ** 2).mean()

    gradients = inf.jit(inf.grad(loss))([found[0].bias, found[2].bias])
    assert [g.shape for g in gradients] == [(32,), (8,)]
    assert all(np.any(np.asarray(g)) for g in gradients)


def test_a_transformer_block_runs_quantized():
    block = nn.TransformerBlock(64, 128, 4, key=random.key(0))
    found, x = nn.quantize(block, "Q8_0"), random.normal(random.key(1), (2, 5, 64))
    np.testing.assert_allclose(np.asarray(found(x)), np.asarray(block(x)), atol=0.05)
