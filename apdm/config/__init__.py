"""The options of every command: nested frozen dataclasses, filled from YAML files, the command line or Python."""

from apdm.config.app import AppConfig
from apdm.config.attack import AttackConfig
from apdm.config.attackers import L2PConfig, PoolConfig, VarietyConfig
from apdm.config.audit import AuditConfig, AuditOptions
from apdm.config.audit_job import AuditJobConfig
from apdm.config.compare import CompareConfig
from apdm.config.continuation import config_hash
from apdm.config.demo import DemoConfig
from apdm.config.env import EnvConfig
from apdm.config.filling import load_config, make_config
from apdm.config.harden import HardenConfig, PreservationConfig, ValidationConfig
from apdm.config.image_layer import ImageLayerConfig
from apdm.config.init import InitConfig
from apdm.config.job import JobConfig
from apdm.config.perturb import PerturbConfig
from apdm.config.presets import MemoryConfig
from apdm.config.push import PushConfig
from apdm.config.report import ReportConfig
from apdm.config.reproduce import ReproduceConfig
from apdm.config.verify import VerifyConfig
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
