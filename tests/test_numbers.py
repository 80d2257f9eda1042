"""Every number in the README and in the findings of the cpu_study, recomputed from its file."""

import json

import numpy as np
import pandas as pd
import pytest
from numbers_helpers import (
    CONVERGED,
    ROOT,
    check,
    converged_study,
    interval,
    mean_and_spread,
    minus,
    prose,
    smaller_lead,
)

CPU_STUDY = ROOT / "results" / "cpu_study"
PICTURED = "vgg_BatchNorm_ImageFolder_cfg_10_bs64_ep60_seed1_b2d2a855"  # in docs/hessian.png


def growth_of_variance(run: str) -> float:
    """Return the activation variance of the last block, relative to the first, at the first iteration."""
    content = json.loads((CPU_STUDY / run / "probes.json").read_text())
    values = zip(content["sites"]["activation"], content["activation_variance"]["first"], strict=True)
    outputs = [value for name, value in values if name.endswith("activation2")]
    return outputs[-1] / outputs[0]


@pytest.fixture(scope="module")
def cpu_study() -> pd.DataFrame:
    return pd.read_csv(CPU_STUDY / "results.csv")


@pytest.fixture(scope="module")
def growth(cpu_study) -> pd.Series:
    """Return the growth of the activation variance in ResNets without SkipInit, by run."""
    resnets = cpu_study[(cpu_study["Model"] == "resnet-56") & ~cpu_study["SkipInit"]]
    return resnets.set_index("run").assign(growth=lambda runs: [growth_of_variance(run) for run in runs.index])


def test_the_numbers_of_the_readme():
    converged = converged_study()
    gpu = json.loads((ROOT / "benchmarks" / "results" / "gpu-nvidia-h200.json").read_text())
    cpu = json.loads((ROOT / "benchmarks" / "results" / "amd-epyc-avx512-2-threads.json").read_text())
    [vgg] = [run for run in gpu["training"] if run["run"] == "vgg/BatchNorm"]

    def speeds(probes: bool) -> str:
        wanted = {"norm": "BatchNorm", "precision": "bf16", "probes": probes, "graph": True}
        found = {row["arch"]: row["images_per_second"] for row in gpu["speed"] if wanted.items() <= row.items()}
        return " | ".join(f"{float(f'{found[arch]:.2g}'):,.0f}" for arch in ("vgg", "resnet-56", "vit"))

    probes = " | ".join(f"{cpu['probes']['measured'][f'{arch} fp32']['on']['median_ratio']:.2f}" for arch in ARCHS[:2])
    products = {name: [cpu["hessian"]["measured"][arch][name] for arch in ARCHS] for name in CONTENDERS}
    ratios = {name: " | ".join(f"{row['median_ratio']:.2f}" for row in rows) for name, rows in products.items()}
    seconds = " | ".join(f"{row['median_seconds']:.2f} s" for row in products["ours, graphs kept"])
    accuracy = {norm: mean_and_spread(own["Test Accuracy"], 1) for norm, own in converged.chosen.groupby("Norm")}
    primary = converged.tables["correlations"].query("family == 'primary'").set_index("measure")
    similarity = primary.loc["Class Similarity"]
    check(
        ROOT / "README.md",
        [
            f"VGGs trained on {converged.runs['train_samples'].max():,} images to a training loss of at most "
            f"{converged.runs['stop_at_loss'].max()},",
            f"BatchNorm does best ({accuracy['BatchNorm']} % over five seeds",
            f"has the lowest accuracy ({accuracy['Plain']} %)",
            f"{smaller_lead(converged)[0]} at the best rates ({smaller_lead(converged)[1]})",
            f"but its lead over EvoNormBO ({accuracy['EvoNormBO']} %) is not established",
            f"(ρ = {minus(similarity['value'], 2)}, p = {similarity['p_holm']:.2g} after Holm's adjustment for "
            f"{len(primary)} measures)",
            f"trains for {vgg['epochs']} epochs on CIFAR-10 in {vgg['seconds']:.0f} seconds",
            f"{100 * vgg['test_accuracy'][-1]:.1f} % test accuracy on JPEG copies",
            f"| bf16 | {speeds(False)} |",
            f"| bf16, layer statistics at every step | {speeds(True)} |",
            f"PyTorch {gpu['machine']['versions']['torch'].rpartition('.')[0]}, bf16, batch 256",
            f"PyTorch {cpu['hessian']['machine']['versions']['torch'].partition('+')[0]}, float32",
            f"relative to one without | {probes} |",
            f"gradient graphs kept | {seconds} |",
            f"PyHessian 0.1, relative to that | {ratios['pyhessian']} |",
            f"curvlinops 3.0.1, relative to that | {ratios['curvlinops']} |",
        ],
        [
            "any of 13 normalization layers",  # tests/test_docs.py
            "(83.8 % in the original study)",
            "Python 3.10 or newer",
            "6 GB of disk",
            "these 18 runs take",
            "The 60 epochs take four to five hours",
            "(10 to 20 with",
            "on 128 images",
            "ViT, 224 px",
            "Krizhevsky (2009)",
        ],
    )


ARCHS = ("vgg", "resnet-56", "vit")
CONTENDERS = ("ours, graphs kept", "pyhessian", "curvlinops")


def rows_of_norms(runs: pd.DataFrame) -> list[str]:
    """Return the rows of the table of norms, best first."""
    columns = {"Test Accuracy": 1, "Train Accuracy": 1, "Trace": 0, "Max Eigen": 1, "Class Similarity": 2}
    rows = []
    for norm, own in sorted(runs.groupby("Norm"), key=lambda pair: -pair[1]["Test Accuracy"].mean()):
        cells = " | ".join(mean_and_spread(own[name], digits) for name, digits in columns.items())
        rows.append(f"| {norm} | {len(own)} | {cells} |")
    return rows


def test_the_numbers_of_the_findings_of_the_cpu_study(cpu_study, growth):
    vgg = cpu_study[(cpu_study["Model"] == "vgg") & (cpu_study["epochs"] == 3)]
    batch = pd.DataFrame(
        [
            {"run": path.parent.name, **json.loads(path.read_text())}
            for path in CPU_STUDY.glob("batch_statistics/*/hessian.json")
        ]
    )
    both = batch[["run", "trace", "max_eigen"]].merge(vgg, on="run").sort_values(["Norm", "seed"])
    accuracy = {norm: mean_and_spread(own["Test Accuracy"], 1) for norm, own in vgg.groupby("Norm")}
    assert vgg.groupby("Norm")["Test Accuracy"].mean().idxmax() == "BatchNorm"
    of_batchnorm = both[both["Norm"] == "BatchNorm"]
    ends = [of_batchnorm[name].agg(end) for name in ("max_eigen", "Max Eigen") for end in ("min", "max")]
    modes = [f"{value:.0f}" for value in ends]
    claims, orders, signs = (
        pd.read_csv(CPU_STUDY / "tables" / f"{name}.csv") for name in ("claims", "orders", "signs")
    )
    groupings = claims[claims["where"].str.contains("groupings")]
    [order] = orders.to_dict("records")
    similarity = claims[claims["compared"].str.contains("class similarity")]
    assert (similarity["low"] < 0).all()
    assert (similarity["high"] > 0).all()
    assert (groupings["verdict"] == "agrees").all()
    assert claims.drop(groupings.index)["verdict"].str.startswith("inconclusive").all()
    [agreeing] = signs[signs["verdict"] == "agrees"].to_dict("records")
    assert (agreeing["measure"], agreeing["outcome"]) == ("Eigen Mean", "Test Accuracy")
    correlations, ranking = (pd.read_csv(CPU_STUDY / "tables" / f"{name}.csv") for name in ("correlations", "ranking"))
    [primary] = correlations[correlations["family"] == "primary"].to_dict("records")
    assert (primary["measure"], primary["p_holm"] > 0.05) == ("Class Similarity", True)
    of_trace = correlations[(correlations["measure"] == "Trace") & (correlations["way"] == "between norms")]
    trace = of_trace[of_trace["outcome"] == "Test Accuracy"].iloc[0]
    best = ranking[ranking["network"] == "vgg"].iloc[0]
    assert best["norm"] == "BatchNorm"
    assert set(cpu_study.loc[cpu_study["status"] == "diverged", "Model"]) == {"resnet-56"}
    assert (cpu_study["status"] == "diverged").sum() == 6
    spreads = vgg.groupby("Norm")["Test Accuracy"].std().dropna()
    minima = vgg[vgg["Norm"] == "InstanceNorm"].sort_values("seed")["min_eigen"]
    tanh = vgg.loc[vgg["Norm"] == "DynamicTanh", "run"].item()
    falling = json.loads((CPU_STUDY / tanh / "probes.json").read_text())["activation_variance"]["first"]
    is_kept = growth["status"] == "done"
    minutes = vgg["seconds"] / 60
    check(
        CPU_STUDY / "FINDINGS.md",
        [
            f"ρ is {minus(primary['value'], 2)} (95 % interval {minus(primary['low'], 2)} to {primary['high']:.2f},",
            f"p = {primary['p_holm']:.2g}; {primary['n_norms']} norms, {primary['n_cells']} cells)",
            f"({accuracy['BatchNorm']} %; its rank may be {best['rank_low']:.0f} to {best['rank_high']:.0f}),",
            f"InstanceNorm has {accuracy['InstanceNorm']} %",
            f"λ_max is {modes[0]} to {modes[1]} with batch statistics, as in training, but {modes[2]} to {modes[3]} in",
            f"grows {growth['growth'][~is_kept].min():.1e}-fold".replace("e+0", "e"),
            f"({groupings['n'].iloc[0]} groupings, ρ = {groupings['value'].min():.0f}, p = {groupings['p'].max():.1g})",
            f"(τ = {order['tau']:.2f}, p = {order['p']:.2g})",
            f"All {len(cpu_study)} runs",
            f"({cpu_study['train_samples'].max():,} training and {cpu_study['test_samples'].max():,} test images)",
            f"with each of the {vgg['Norm'].nunique()} norms",
            f"took {minutes.min():.0f} to {minutes.max():.0f} minutes",
            f"with {cpu_study.loc[cpu_study['Norm'] == 'GroupNorm', 'P Grouping'].nunique()} groupings",
            f"{cpu_study['train_samples'].min():,} training and {cpu_study['test_samples'].min():,} test images,",
            f"batch size {cpu_study['Batch Size'].min()}, {cpu_study['epochs'].max()} epochs",
            f"{vgg['hessian_samples'].max():.0f} training images ({cpu_study['hessian_samples'].min():.0f} for the",
            f"{vgg['class_similarity_samples'].max():,.0f} training images (all "
            f"{cpu_study['class_similarity_samples'].min():,.0f} for",
            *rows_of_norms(vgg),
            "λ_min is " + " and ".join(", ".join(minus(each, 0) for each in minima).rsplit(", ", 1)) + " in the three",
            f"falls from {falling[0]:.3f} at the first layer to {falling[-1]:.0e}".replace("e-0", "e-"),
            *(
                f"| {row['Norm']}, seed {row['seed']} | {row['max_eigen']:.1f} | {row['Max Eigen']:.1f} | "
                f"{row['trace']:.0f} | {row['Trace']:.0f} |"
                for row in both.to_dict("records")
            ),
            f"by a factor of {growth['growth'][is_kept].min():.0f} to {growth['growth'][is_kept].max():.0f} from",
            f"(ρ = {trace['value']:.2f}, {interval(trace, 2)}; p = {trace['p_holm']:.2g} after Holm's",
            f"Of {len(signs)} correlations",
            f"lies between {minus(similarity['value'].min(), 2)} and {similarity['value'].max():.2f}, and each of the "
            f"{len(similarity)} intervals",
            f"differ by {spreads.drop('DynamicTanh', errors='ignore').min():.1f} to {spreads.max():.1f} points",
        ],
        [
            "After 3 epochs, a VGG",
            "begin** to learn: 3 or 4 epochs",
            "batch size 256, 3 epochs, SGD with a learning rate of 0.1,",
            "(32 pixels, patches of 4)",
            "Of the 11 groupings, seven have p ≤ 1: groups of 1 to 32 channels",
            "or after 240 probes (InstanceNorm, seed 1)",
            "From the 8th convolution on",
            "map of 2 × 2 pixels",
            "with α = 0.5",
            "statistics of the 130 images themselves",
            "VGG, CIFAR-10, batch size 256,",
            "after 3 epochs and in eval mode",
        ],
    )
    assert np.isfinite(growth["growth"]).all()


def test_the_numbers_below_the_picture_of_a_spectrum():
    content = json.loads((CONVERGED / PICTURED / "hessian-filter.json").read_text())
    text = prose(ROOT / "docs" / "measuring.md")
    assert f"estimated from {content['num_samples']} images" in text
    assert f"largest eigenvalue, λ_max, is {content['max_eigen']:.0f}." in text
    assert f"curvature on the other), it is only {content['max_eigen_cross_fitted']:.1f}." in text
