"""The runs of `memsim validate --host`: which are fitted, and which are only predicted; MODEL:SCHEDULE:TOKENS."""

CALIBRATION = ",".join(f"qwen2.5-0.5b:{schedule}:{n}" for n in (32, 256) for schedule in ("tiled", "mebp", "backprop"))
HELD_OUT = (
    "qwen2.5-0.5b:tiled:64,qwen2.5-0.5b:mebp:64,qwen2.5-0.5b:tiled:128,qwen2.5-0.5b:mebp:128,qwen2.5-0.5b:tiled:512,"
    "qwen2.5-0.5b:backprop:128,opt-125m:tiled:128,opt-125m:mebp:256,opt-125m:backprop:256,qwen3-0.6b:tiled:128,"
    "qwen3-0.6b:mebp:64,qwen3-0.6b:tiled:256,llama-3.2-1b:tiled:128"
)
