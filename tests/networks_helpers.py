"""Small versions of the three networks."""

import pytest

import config


def shrink(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the networks fewer and narrower layers: VGG of 4 convolutions, 2 blocks per stage, 2 encoder blocks."""
    monkeypatch.setattr(config, "VGG_LAYERS", {"cfg_10": (32, (32, 2), 64, (64, 2))})
    monkeypatch.setattr(config, "RESNET_BLOCKS_PER_STAGE", 2)
    monkeypatch.setattr(config, "VIT_BLOCKS", 2)
    monkeypatch.setattr(config, "VIT_WIDTH", 96)
    monkeypatch.setattr(config, "VIT_MLP_WIDTH", 192)
