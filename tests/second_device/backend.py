"""The second device, under the name of a backend that accelerate knows and treats like any other."""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any

import torch

NAME = "sdaa"
MEMORY = 100_000_000_000  # what it says that it has, in bytes


class Event:
    """A moment in the work of the device, which has always passed."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def record(self, *_: Any) -> None: ...

    def wait(self, *_: Any) -> None: ...


class Stream(Event):
    """The one queue of work, which is always empty."""

    wait_stream = wait_event = Event.wait


def load() -> None:
    """Make torch know the device. Torch calls this by itself when it is imported."""
    torch.ops.load_library(str(Path(__file__).with_name("second_device.so")))  # the compiled device.cpp
    torch.utils.rename_privateuse1_backend(NAME)
    generator = torch.ops.second_device.default_generator()
    module: Any = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module._is_in_bad_fork = lambda: False
    module.init = module._lazy_init = lambda: None
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.set_device = module.synchronize = module.empty_cache = lambda *_: None
    module.device = module.stream = lambda *_: contextlib.nullcontext()
    module.Event, module.Stream = Event, Stream
    module.current_stream = module.default_stream = lambda *_: Stream()
    module.manual_seed = module.manual_seed_all = generator.manual_seed
    module.seed = module.seed_all = generator.seed
    module.get_rng_state = lambda *_: generator.get_state()
    module.set_rng_state = lambda state, *_: generator.set_state(state)
    module.default_generators = [generator]
    module.get_amp_supported_dtype = lambda: [torch.float16, torch.bfloat16]
    module.is_bf16_supported = lambda *_: True
    module.mem_get_info = lambda *_: (MEMORY, MEMORY)
    module.memory_allocated = module.max_memory_allocated = lambda *_: 0
    module.get_device_name = lambda *_: "second device"
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend(for_storage=True)
