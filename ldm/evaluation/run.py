"""A whole evaluation: networks read, pictures painted and measured, tables printed, files
written."""

import argparse
from collections.abc import Callable, Sequence

from ldm.device import choose_device, memory_errors
from ldm.evaluation import fid, plot, report
from ldm.evaluation.efficientnet import EfficientNetLite0, load_judge
from ldm.evaluation.evaluator import Evaluator, Measured
from ldm.evaluation.fid import Inception
from ldm.evaluation.metrics import PairMetrics, load_lpips, load_vgg
from ldm.evaluation.painting import PairPainter
from ldm.evaluation.plan import Plan
from ldm.evaluation.retrieval import LAST_STAGE
from ldm.media.images import save_image
from ldm.pipeline.pipeline import StyleTransferPipeline


def evaluate(
    plan: Plan, args: argparse.Namespace, load_pipeline: Callable[[], StyleTransferPipeline]
) -> None:
    """Do what is planned, as the options of `artfusion evaluate` say.

    load_pipeline: called only if there is something to paint. Raises UserError where weights cannot
    be had or used, and for pictures larger than memory takes.
    """
    with memory_errors("choose a smaller --size"):
        metrics, inception, judge = load_networks(args)
        sets = plan.sets
        if plan.settings:
            painter = PairPainter(load_pipeline(), plan.contents, plan.styles, args.save)
            sets = painter.result_sets(plan.settings, plan.pairs, plan.named) + sets
        if plan.sheet:
            sets = [plan.sheet.watch(sets[0]), *sets[1:]]
        measured = Evaluator(plan.contents, plan.styles, metrics, inception, judge).measure(sets)
    tell(measured, plan, args)


def load_networks(args: argparse.Namespace) -> tuple[PairMetrics, Inception | None, EfficientNetLite0 | None]:
    """The measuring networks that the options ask for. Raises UserError where their weights cannot
    be had or used."""
    device = choose_device(args.device)
    vgg = load_vgg(args.vgg_weights)
    lpips = load_lpips(args.lpips_weights, vgg, args.vgg_weights) if args.lpips_weights else None
    inception = fid.load_inception(args.inception_weights, device) if args.inception_weights else None
    judge = load_judge(args.judge_weights, device, LAST_STAGE) if args.judge_weights else None
    return PairMetrics(vgg, lpips, device), inception, judge


def tell(measured: Sequence[Measured], plan: Plan, args: argparse.Namespace) -> None:
    """Print the tables, and write the files that the options name. Raises OSError."""
    if args.csv:
        report.write_csv(measured, args.csv)
    print("\n".join([report.table(measured, len(plan.pairs)), "", report.whole_table(measured), ""]))
    print("\n".join(report.notes(measured, plan.pairs, judge=bool(args.judge_weights))))
    if args.plot:
        plot.draw_trade_off(measured, args.plot)
    if plan.sheet:
        save_image(plan.sheet.draw(), args.sheet)
