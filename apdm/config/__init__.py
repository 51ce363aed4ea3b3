"""The options of every command: nested frozen dataclasses, filled from YAML files, the command line or Python.

commands, groups             the options: of each command; and of what commands share
options, types, filling      how an option is declared; its type; how options are filled
yaml_text, paths             YAML; home folders and variables in paths
diffusers_names              what diffusers' script calls the same options
plugins, registry, class_names   attacks, objectives, photo protections and families by their names
python_file                  runs a user's file, which holds one of these
prompts, judges              prompts that follow from another; feature networks by their names
continuation                 options that do not change the result of a run
photo_run                    the configuration of the run that protected photos
help, reference              the help on the terminal; the pages of options in the documents
starting_file                the YAML file that `apdm init` writes
"""

from apdm.config.commands.app import AppConfig
from apdm.config.commands.attack import AttackConfig
from apdm.config.commands.audit import AuditJobConfig
from apdm.config.commands.compare import CompareConfig
from apdm.config.commands.demo import DemoConfig
from apdm.config.commands.env import EnvConfig
from apdm.config.commands.harden import HardenConfig, PreservationConfig, ValidationConfig
from apdm.config.commands.init import InitConfig
from apdm.config.commands.perturb import PerturbConfig
from apdm.config.commands.push import PushConfig
from apdm.config.commands.report import ReportConfig
from apdm.config.commands.reproduce import ReproduceConfig
from apdm.config.commands.verify import VerifyConfig
from apdm.config.continuation import config_hash
from apdm.config.filling import load_config, make_config
from apdm.config.groups.attackers import L2PConfig, PoolConfig, VarietyConfig
from apdm.config.groups.audit import AuditConfig, AuditOptions
from apdm.config.groups.image_layer import ImageLayerConfig
from apdm.config.groups.job import JobConfig
from apdm.config.groups.presets import MemoryConfig
from apdm.config.yaml_text import to_yaml

AuditingConfig = HardenConfig | AuditJobConfig | AttackConfig  # jobs that attack models; `.audit` says how

__all__ = [
    "AppConfig",
    "AttackConfig",
    "AuditConfig",
    "AuditJobConfig",
    "AuditOptions",
    "AuditingConfig",
    "CompareConfig",
    "DemoConfig",
    "EnvConfig",
    "HardenConfig",
    "ImageLayerConfig",
    "InitConfig",
    "JobConfig",
    "L2PConfig",
    "MemoryConfig",
    "PerturbConfig",
    "PoolConfig",
    "PreservationConfig",
    "PushConfig",
    "ReportConfig",
    "ReproduceConfig",
    "ValidationConfig",
    "VarietyConfig",
    "VerifyConfig",
    "config_hash",
    "load_config",
    "make_config",
    "to_yaml",
]
