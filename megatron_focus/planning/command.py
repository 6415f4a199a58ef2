"""What ``tools/plan.py`` does once its command line is read."""

import argparse
import json
import os
import sys
from pathlib import Path

from omegaconf import OmegaConf

from data_pipeline.dataset.manifest import Manifest
from megatron_focus.config.checks.installed import installation_problems
from megatron_focus.config.loading import load_config
from megatron_focus.config.schema import RunConfig
from megatron_focus.planning.attention import attention_on
from megatron_focus.planning.estimate import estimate
from megatron_focus.planning.hardware import GPUS, Cluster
from megatron_focus.planning.remedies import remedies
from megatron_focus.planning.report import Plan, as_json, report
from megatron_focus.planning.search import LoadOf, layout_refused, overrides, search
from megatron_focus.planning.typical import TypicalSample
from megatron_focus.planning.workload import Sample, manifest_samples, workload

_MANIFEST_BATCHES = 16


def run(options: argparse.Namespace) -> int:
    """Plan and print; the exit code."""
    try:
        for file in (options.json, options.write_config):
            if file is not None and file.exists():
                raise ValueError(f"{file} exists; name a new file")
        config = load_config(options.config, options.overrides)
        plan = make_plan(config, options)
        if options.json is not None:
            _write(options.json, json.dumps(as_json(plan), indent=1) + "\n")
        refused = attention_on(config, plan.cluster).is_refused
        if options.write_config is not None and refused:
            raise ValueError(
                f"{options.write_config} is not written: start-up would refuse the attention; without --write-config "
                "the plan says more"
            )
        if options.write_config is not None:
            _write(options.write_config, _best_config(plan, options))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report(plan, options.top))
    best = plan.ranked[0].estimate if plan.ranked else plan.shown
    fits = plan.own is not None and plan.own.fits and not refused
    verdict = "fits" if fits else "does not fit" if plan.own is not None else "has a layout that cannot run"
    verdict = "would be refused for its attention" if refused else verdict
    found = f"the best of {len(plan.ranked)} layouts takes {best.time.total:.2f} s a step"
    found = "and in every layout" if refused else found if best.fits else "no layout fits"
    print(f"\n{options.config} {verdict} on {options.gpus} {options.gpu}; {found}")
    return 0 if fits else 1


def make_plan(config: RunConfig, options: argparse.Namespace) -> Plan:
    """Everything that the report says.

    Raises:
        ValueError: the configuration cannot run in any layout.
    """
    refused = layout_refused(config, options.gpus)
    cluster = Cluster(
        gpu=GPUS[options.gpu],
        gpus=options.gpus,
        node_size=options.nodes_of,
        flash_attn=not options.without_flash_attn,
    )
    load_of = _workloads(config, options)
    load = load_of(config)
    own = estimate(config, load, cluster) if refused is None else None
    ranked = search(config, load_of, cluster)
    if own is None and not ranked:
        raise ValueError(refused)
    return Plan(
        title=str(options.config),
        cluster=cluster,
        load=load,
        own=own,
        refused=refused,
        ranked=ranked,
        remedies=[] if (own or ranked[0].estimate).fits else remedies(config, load_of, cluster, ranked),
        missing=installation_problems(config),
    )


def _workloads(config: RunConfig, options: argparse.Namespace) -> LoadOf:
    """From a configuration to the rows of its steps."""
    samples: list[Sample]
    if options.sequence_lengths == "manifest":
        if config.data.path is None:
            raise ValueError("data.path is not set; --sequence-lengths manifest reads the lengths there")
        manifest = Manifest.load(config.data.path)
        count = _MANIFEST_BATCHES * config.training.global_batch_size
        samples = manifest_samples(manifest, config.data, config.model.image, count)
        source = f"the first {count:,} samples of {config.data.path}, user tokens taken to be all that is not learnt"
    else:
        height, width = options.image
        text, labels, asked = options.text_tokens
        sample = TypicalSample(height=height, width=width, text=text, labels=labels, instruction=asked)
        samples = [sample.lengths(config.model.image)]
        source = (
            f"every sample has one image of {width} x {height} pixels, {samples[0].visual:,} visual tokens of "
            f"LLaVA-NeXT, and {text} tokens of text, {labels} of them learnt and {asked} of the user"
        )
    source += f"; {options.kept_vision:.1%} of the visual tokens kept by the vision-guided sampler where it is on, "
    source += f"{options.kept_text:.0%} of those by the text-guided one"
    return lambda changed: workload(changed, samples, options.kept_vision, options.kept_text, source)


def _best_config(plan: Plan, options: argparse.Namespace) -> str:
    """A run's file that inherits from the configuration and has the best layout."""
    if not plan.ranked or not plan.ranked[0].estimate.fits:
        raise ValueError(
            f"{options.write_config} is not written: no layout fits; without --write-config the plan says more"
        )
    written = OmegaConf.from_dotlist(options.overrides)
    base = os.path.relpath(Path(options.config).resolve(), options.write_config.resolve().parent)
    settings = overrides(plan.ranked[0].estimate)
    for key, value in settings.items():
        OmegaConf.update(written, key, value)
    return f"base: {base}\n" + OmegaConf.to_yaml(written)


def _write(file: Path, content: str) -> None:
    """Aside, then renamed."""
    aside = file.with_name(file.name + ".part")
    aside.write_text(content, encoding="utf-8")
    aside.rename(file)
