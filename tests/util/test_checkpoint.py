import pytest
import torch

from sae_lib.util.checkpoint import load_checkpoint, load_optimizer_tensors, optimizer_tensors, save_checkpoint


def test_round_trip(tmp_path):
    tensors = {
        "weights": torch.randn(3, 4),
        "transposed": torch.randn(3, 4).T,
        "half": torch.randn(5).to(torch.bfloat16),
        "counts": torch.arange(4),
        "state": torch.Generator().manual_seed(3).get_state(),
        "empty": torch.zeros(0, 0),
    }
    state = {"index": 7, "history": [{"loss": 0.25, "name": "größer"}], "none": None}
    save_checkpoint(tmp_path / "deep" / "file.safetensors", tensors, state)
    loaded, loaded_state = load_checkpoint(tmp_path / "deep" / "file.safetensors")
    assert loaded_state == state and loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_a_failing_write_leaves_the_old_file(tmp_path):
    file = tmp_path / "file.safetensors"
    save_checkpoint(file, {"x": torch.ones(2)}, {"index": 1})
    with pytest.raises(TypeError):
        save_checkpoint(file, {"x": torch.zeros(2)}, {"index": object()})
    tensors, state = load_checkpoint(file)
    assert tensors["x"].tolist() == [1, 1] and state == {"index": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["file.safetensors"]


@pytest.mark.parametrize("kind", [torch.optim.Adam, torch.optim.AdamW])
def test_an_optimizer_goes_on_as_if_nothing_had_happened(tmp_path, kind):
    def model_and_optimizer():
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 2)
        return model, kind(model.parameters(), lr=0.1, fused=True)

    def run(model, optimizer, steps):
        for i in range(steps):
            optimizer.zero_grad()
            model(torch.full((4, 3), 1.0 + i)).square().sum().backward()
            optimizer.step()

    model, optimizer = model_and_optimizer()
    run(model, optimizer, 3)
    tensors = optimizer_tensors(optimizer)
    assert sorted(tensors) == sorted(f"optimizer.{i}.{n}" for i in (0, 1) for n in ("step", "exp_avg", "exp_avg_sq"))
    save_checkpoint(tmp_path / "c.safetensors", tensors | {f"m.{n}": t for n, t in model.state_dict().items()}, {})
    run(model, optimizer, 3)

    other, fresh = model_and_optimizer()
    loaded, _ = load_checkpoint(tmp_path / "c.safetensors")
    other.load_state_dict({n.removeprefix("m."): t for n, t in loaded.items() if n.startswith("m.")})
    load_optimizer_tensors(fresh, loaded)
    run(other, fresh, 3)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))
