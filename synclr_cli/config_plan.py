"""Settings of `synclr plan`: the machine, and what its estimates assume, each with its reason.

They change no artifact, so that all are `running`: no preset holds them.
"""

from __future__ import annotations

from dataclasses import dataclass

from synclr_cli.fields import Checked, setting


@dataclass(frozen=True)
class PlanConfig(Checked):
    """The machine, and how well it is used."""

    TABLE = "plan"

    # --- the machine
    gpus: int = setting(8, "[1, 1e5]", "that share the work", unit="GPUs", running=True)
    gpu: str = setting("h100", None, "their kind", running=True)
    gpus_per_node: int = setting(
        8, "[1, 1024]", "with the kind's own links; beyond, the network", unit="GPUs", running=True
    )
    network_gbit: float = setting(
        400.0, "[0.1, 1e6]", "between two nodes, one direction", unit="Gbit/s", running=True
    )
    storage_gbit: float = setting(
        100.0, "[0.1, 1e6]", "from the images' storage to all nodes", unit="Gbit/s", running=True
    )
    price: float = setting(
        0.0, "[0, 1e6]", "of a GPU for an hour, in any currency; 0: not told", running=True
    )
    # --- how well it is used
    train_share: float = setting(
        0.35,
        "(0, 1]",
        "of the peak in training: compiled ViT-B and ViT-L usually reach 0.3 to 0.45",
        running=True,
    )
    render_share: float = setting(
        0.35,
        "(0, 1]",
        "of the peak in rendering: attention and norms of a U-Net are bound by memory",
        running=True,
    )
    captions_share: float = setting(
        0.25,
        "(0, 1]",
        "of the peak, or of the memory's bandwidth where that is less, in decoding: vLLM reaches"
        " about half, a plain loop a quarter",
        running=True,
    )
    link_share: float = setting(
        0.7, "(0, 1]", "of links and network that a reduction reaches", running=True
    )
    overlap: float = setting(
        0.5,
        "[0, 1]",
        "of the averaging that is hidden: buckets are sent during the last backward pass",
        running=True,
    )
    memory_share: float = setting(
        0.9, "(0, 1]", "of a GPU's memory that can be used: the rest is fragments", running=True
    )
    # --- what the models do
    caption_tokens: float = setting(
        24.0,
        "[1, 4096]",
        "of a completion up to its newline: 13 words, and its rejected draws",
        unit="tokens",
        running=True,
    )
    prompt_tokens: float = setting(
        24.0,
        "[1, 1e5]",
        "read for each caption beside the examples, which a block of captions shares",
        unit="tokens",
        running=True,
    )
    draws: float = setting(
        1.6,
        "[1, 100]",
        "completions for each caption kept: the gate passes 65 % of SmolLM2's",
        running=True,
    )
    redraws: float = setting(
        0.02, "[0, 100]", "views generated again, as a share: rejected by the gate", running=True
    )
    caption_billions: float = setting(
        0.0, "[0, 1e5]", "weights of the language model, in 10^9; 0: as known", running=True
    )
    image_tflop: float = setting(
        0.0, "[0, 1e6]", "of one generated image, in 10^12; 0: as known", running=True
    )
    # --- what --measure times
    measured_parts: int = setting(
        6, "[3, 1000]", "parts that --measure makes of captions and images", running=True
    )
    measured_captions: int = setting(
        16, "[1, 65536]", "captions of each of these parts of images", running=True
    )
    measured_steps: int = setting(
        12, "[4, 1e5]", "updates that --measure trains", unit="updates", running=True
    )
