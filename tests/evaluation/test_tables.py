import json
import math

import pytest
from result_rows import CURVE, row

from dng_lightning.evaluation.tables import by_method, equal_safety, results_markdown, results_table, safety_table
from dng_lightning.guidance import DynamicNegativeGuidance, PositiveAndNegative
from dng_lightning.guidance.serialization import non_default_settings, settings_json
from dng_lightning.posterior import Posterior, TimedPosterior, TrackedPosterior


def found(rows: list[dict[str, str]]) -> dict[tuple[str, float], dict[str, float]]:
    return {
        (result["method"], result["forbidden_rate"]): {
            k: v for k, v in result.items() if k not in ("method", "forbidden_rate")
        }
        for result in equal_safety(rows)
    }


# --- methods ---


def test_rows_of_a_method_are_told_apart_by_all_settings_but_the_scale():
    def told(scale: float, prior: float, fitted: list[int] | None) -> dict[str, str]:
        given = {"class": "DNG", "scale": scale, "prior": prior, "fitted": fitted, "cap": 0.99}
        return row("DNG", 0.01, 0.1, scale=scale, guidance=json.dumps(given))

    long, longer = list(range(10)), list(range(20))
    rows = [told(1, 0.1, None), told(2, 0.1, None), told(1, 0.2, long), told(1, 0.1, longer)]
    rows.append(row("NP", 0.01, 0.1, guidance='{"class": "NP", "scale": 1}'))
    found = {name: [row["scale"] for row in own] for name, own in by_method(rows).items()}
    one, two = "DNG, fitted none, prior 0.1", "DNG, fitted #3, prior 0.2"
    assert found == {one: ["1", "2"], two: ["1"], "DNG, fitted #4, prior 0.1": ["1"], "NP": [""]}
    assert [result["method"] for result in equal_safety(rows[:2])] == ["DNG"] * 3


def test_the_scale_of_a_wrapped_guidance_is_the_methods():
    def told(scale: float, looks: int, wanted_scale: float = 3.0) -> dict[str, str]:
        inner = {"class": "Both", "wanted_scale": wanted_scale, "guidance": {"class": "NP", "scale": scale, "cap": 1}}
        given = {"class": "Adaptive", "guidance": inner, "looks": looks}
        return row("Adaptive(Both(NP))", 0.01, 0.1, scale=scale, guidance=json.dumps(given))

    rows = [told(1, 20), told(2, 20), told(4, 5)]
    assert [len(own) for own in by_method(rows).values()] == [2, 1]
    assert list(by_method(rows)) == ["Adaptive(Both(NP)), looks 20", "Adaptive(Both(NP)), looks 5"]
    assert list(by_method([told(1, 20), told(1, 20, 5.0)])) == [
        "Adaptive(Both(NP)), wanted_scale 3.0",
        "Adaptive(Both(NP)), wanted_scale 5.0",
    ]


def test_settings_of_guidances_inside_are_told_apart_by_what_is_unusual():
    def told(scale: float = 1.0, posterior: Posterior = TrackedPosterior()) -> dict[str, str]:
        guidance = PositiveAndNegative(DynamicNegativeGuidance(scale, posterior), 1.5)
        settings = non_default_settings(settings_json(guidance))
        return row("P(D)", 0.01, 0.1, scale=scale, guidance=settings)

    others = (TrackedPosterior(offset=0.001), TimedPosterior(0.6, 0.5, 0.01), TrackedPosterior(0.2, p_min=0.1))
    rows = [told(), told(2.0), *(told(posterior=posterior) for posterior in others)]
    assert list(by_method(rows)) == [
        "P(D)",
        "P(D), class TrackedPosterior, offset 0.001",
        "P(D), class TimedPosterior, p_0 0.01, t0 0.6, t1 0.5",
        "P(D), class TrackedPosterior, p_min 0.1, prior 0.2",
    ]


def test_distances_in_other_features_are_others():
    rows = [
        row("DNG", 0.001, 0.1, 2, features="mnist-classifier"),
        row("DNG", 0.1, 0.1, 3, features="mnist-classifier"),
    ]
    assert list(by_method([*rows, row("DNG", 0.01, 0.1, 2)])) == ["DNG"]  # that one is of an earlier version
    rows += [row("DNG", 0.1, 0.1, 90, features="inception-2048")]
    assert list(by_method(rows)) == ["DNG, features mnist-classifier", "DNG, features inception-2048"]
    told = ["DNG, mnist-classifier", "DNG, mnist-classifier", "DNG, inception-2048"]
    assert [line[:28].split("  ")[0] for line in results_table(rows).splitlines()[1:]] == told
    assert [cells(line)[0] for line in results_markdown(rows).splitlines()[2:5]] == told


# --- equal safety ---


def test_values_are_read_off_the_lines_between_points_over_the_logarithm_of_the_rate():
    """0.5 % lies halfway between 0.25 % and 1 %, and 2 % halfway between 1 % and 4 %; 1 % is a point."""
    values = found(CURVE)
    assert values["DNG", 0.005] == pytest.approx({"kl_retained": 0.25, "fd_retained": 6.0, "rmse_to_unguided": 0.125})
    assert values["DNG", 0.01] == pytest.approx({"kl_retained": 0.2, "fd_retained": 8.0, "rmse_to_unguided": 0.125})
    assert values["DNG", 0.02] == pytest.approx({"kl_retained": 0.15, "fd_retained": 5.0, "rmse_to_unguided": 0.125})
    assert found(CURVE[::-1]) == values
    closer = found([row("DNG", 0.005, 0.3), row("DNG", 0.04, 0.1)])["DNG", 0.01]
    assert closer == pytest.approx({"kl_retained": 0.3 - 0.2 / 3})


def test_nothing_is_said_beyond_the_ends_of_a_curve():
    values = found([row("NP", 0.012, 0.1), row("NP", 0.018, 0.2), row("SLD", 0.003, 0.1), row("One", 0.01, 0.1)])
    assert values == {(name, level): {} for name in ("NP", "SLD", "One") for level in (0.005, 0.01, 0.02)}


def test_half_an_image_stands_in_for_none():
    """Of 1,000 images: 0.05 %."""
    values = found([row("DNG", 0, 1.0), row("DNG", 0.02, 0.0)])
    share = math.log(0.005 / 0.0005) / math.log(0.02 / 0.0005)
    assert values["DNG", 0.005]["kl_retained"] == pytest.approx(1 - share)
    few = found([row("DNG", 0, 1.0, n=40), row("DNG", 0.02, 0.0, n=1000)])  # of 40 images: 1.25 %
    assert few["DNG", 0.01] == {}
    assert few["DNG", 0.02] == pytest.approx({"kl_retained": 0.0})


def test_several_points_without_a_leak():
    values = found([row("DNG", 0, 1.0), row("DNG", 0, 2.0), row("DNG", 0.02, 0.0)])
    assert 0 < values["DNG", 0.01]["kl_retained"] < 2.0
    level = found([row("DNG", 0.01, 1.0), row("DNG", 0.01, 2.0)])
    assert level["DNG", 0.01]["kl_retained"] in (1.0, 2.0)


def test_references_are_no_curves():
    references = [row(name, rate, 0.1) for name in ("Unguided", "Rejection", "Retrained") for rate in (0.001, 0.1)]
    assert equal_safety(references) == []
    assert safety_table(references) == ""


def test_curves_of_other_steps_and_seeds_are_others():
    rows = [row("DNG", 0.001, 0.1), row("DNG", 0.1, 0.1, steps=20)]
    assert list(by_method(CURVE)) == ["DNG"]
    assert list(by_method(rows)) == ["DNG, 50 steps", "DNG, 20 steps"]
    assert list(by_method([*rows, row("NP", 0.1, 0.1, seeds="5-9")])) == [
        "DNG, 50 steps, seeds 0-999",
        "DNG, 20 steps, seeds 0-999",
        "NP, 50 steps, seeds 5-9",
    ]
    assert not any(found(rows).values())


# --- tables ---


def test_the_table_at_equal_safety():
    head, *lines = safety_table([*CURVE, row("NP", 0.5, 0.1)]).splitlines()  # NP has no value to show
    assert head.split("  ")[-4:] == ["KL to uniform", "KL to unguided", "Fréchet distance", "RMSE to unguided"]
    assert [line.split() for line in lines] == [
        ["DNG", "0.5", "0.250", "–", "6.000", "0.125"],
        ["DNG", "1", "0.200", "–", "8.000", "0.125"],
        ["DNG", "2", "0.150", "–", "5.000", "0.125"],
    ]
    assert len({len(line) for line in (head, *lines)}) == 1
    (half,) = safety_table([row("DNG", 0.008, 0.1), row("DNG", 0.012, 0.2)]).splitlines()[1:]
    assert half.split()[:2] == ["DNG", "1"]
    assert half.split()[3:] == ["–"] * 3  # there is no distance


def test_the_table_of_the_terminal():
    lines = results_table([row("Unguided", 0.1, 0.05), row("DNG", 0.004, 0.125, 1.5, scale=2)]).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1].split() == ["Unguided", "–", "1000", "10.00", "(8.29–12.02)", "0.050", *["–"] * 6, "100"]
    assert lines[2].split()[:5] == ["DNG", "2", "1000", "0.40", "(0.16–1.02)"]
    assert lines[2].split()[5:] == ["0.125", "–", "1.500", "1.23", "0.750", "0.625", "0.125", "100"]


def test_a_rate_without_an_interval():
    """That of the images which the judge itself let pass."""
    rejection = row("Rejection", 0, 0.05) | {"forbidden_rate_low": "", "forbidden_rate_high": ""}
    head, line = results_table([rejection]).splitlines()
    assert len(head) == len(line)
    assert line.split()[3:5] == ["0.00", "0.050"]
    assert cells(results_markdown([rejection]).splitlines()[2])[3] == "0.00"


def cells(line: str) -> list[str]:
    assert line.startswith("|")
    assert line.endswith("|")
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_markdown():
    text = results_markdown([row("Unguided", 0.1, 0.05), *CURVE], ["First.", "Second."])
    assert text.startswith("First.\n\nSecond.\n\n|")
    assert text.endswith("|\n")
    results, safety = text.split("At equal safety (interpolated):")
    for part, count in ((results, 4), (safety, 3)):
        table = [line for line in part.splitlines() if line.startswith("|")]
        assert len(table) == 2 + count
        assert len({len(cells(line)) for line in table}) == 1
        assert set(cells(table[1])) == {"---"}
        assert f"\n\n{table[0]}\n" in text  # else it is no table
    heads, _, unguided, dng = [cells(line) for line in results.splitlines() if line.startswith("|")][:4]
    told = dict(zip(heads, dng, strict=True))
    assert told["forbidden, %"] == "4.00 (2.95–5.40)"
    assert told["KL to uniform"] == "0.100 (0.090–0.110)"
    assert told["KL to unguided¹"] == "–"
    assert told["Fréchet distance"] == "2.000 (1.600–2.400)"
    assert told["KID ×1000"] == "1.23"
    assert (told["precision"], told["recall"], told["RMSE to unguided"]) == ("0.750", "0.625", "0.125")
    assert dict(zip(heads, unguided, strict=True))["Fréchet distance"] == "–"
    assert "| DNG | 0.5 | 0.250 | – | 6.000 | 0.125 |" in safety


def test_the_divergence_to_the_model_s_own_balance():
    rows = [
        row("DNG", rate, 0.1, kl_unguided=kl, kl_unguided_low=kl / 2, kl_unguided_high=2 * kl)
        for rate, kl in ((0.01, 0.05), (0.04, 0.03))
    ]
    assert found(rows)["DNG", 0.02]["kl_unguided"] == pytest.approx(0.04)
    assert results_table(rows).splitlines()[1].split()[5:7] == ["0.100", "0.050"]
    assert safety_table(rows).splitlines()[2].split()[2:4] == ["0.100", "0.040"]
    text = results_markdown(rows)
    assert cells(text.splitlines()[2])[5] == "0.050 (0.025–0.100)"
    assert "| DNG | 2 | 0.100 | 0.040 | – | – |" in text
    assert "\n\n¹ To the balance of the unguided images" in text


def test_markdown_without_curves():
    text = results_markdown([row("Unguided", 0.1, 0.05)])
    assert "equal safety" not in text
    assert text.startswith("| method |")
