"""A loop with a Recorder: followed, stopped, compared."""

import subprocess
import time

import pytest
from typer.testing import CliRunner

from learnmech.cli import build

SLEEPER = """
class Sleeper(BaseProbe):
    default_name = "sleeper"
    def measure(self, view):
        time.sleep(0.02)
        from learnmech.wire import Measurement
        return [Measurement("user.sleep", 1.0)]
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_loop_is_measured_stopped_and_compared(doctor, loop, by_name):
    """The oracle of the cost is a probe that sleeps: it cannot take less. That of harm is the code after the loop."""
    doctor.write("train.py", loop(SLEEPER, more=", [Sharpness(every(5)), Sleeper()], budget=0.5"))
    code, report = doctor.json("train.py")
    probes = by_name(report)
    assert code == 0
    assert report["budget"] == 0.5
    assert report["complete"]
    assert report["harmless"]["identical"] is True
    assert report["training"]["model"] == "Sequential"
    assert report["training"]["parameters"] == 41
    assert report["training"]["optimizer"] == "SGD"
    assert {name for name, probe in probes.items() if probe["wanted"]} == {"Sharpness", "Sleeper", "Vitals"}
    assert {probe["works"] for probe in report["probes"]} == {"yes"}, report["probes"]
    assert probes["Sharpness"]["methods"][0] == "double_backward"
    assert 0 <= probes["Sharpness"]["relative_error"] <= 0.01
    assert probes["Sleeper"]["first_ms"] >= 20
    assert probes["Sleeper"]["warm_ms"] >= 20
    assert probes["Sleeper"]["every_together"] > probes["Sleeper"]["every_alone"] >= 1
    assert doctor.left() == ["train.py"], "what came after the loop was run, or something was stored"


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_training_that_probing_changes_is_told(doctor, loop):
    """State that no replay can see: every evaluation of the loss moves it, so probes change what comes after."""
    head = "evaluations = []"
    loss = " * (1 + 0.01 * (evaluations.append(1) or len(evaluations) % 7))"
    doctor.write("train.py", loop(head, loss))
    code, report = doctor.json("train.py")
    assert code == 1
    assert report["harmless"]["identical"] is False
    assert report["harmless"]["detail"].endswith("what measured then: Sharpness")


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("print('hello')", 2, "no Recorder was told of one"),
        ("def broken():\n    raise ValueError('the data is gone')\n\nbroken()", 1, "ValueError: the data is gone"),
        (
            "import sys\nsys.exit(f'no such data set: {sys.argv}')",
            1,
            "no such data set: ['train.py', '--json', '--data']",
        ),
    ],
)
def test_what_is_wrong_with_a_script_is_its_own(text, code, said, doctor):
    """What stands after the script is the script's, even where it looks like an option of ours."""
    doctor.write("train.py", text)
    done = doctor("train.py", "--json", "--data")
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "learnmech/probes/doctor" not in done.stderr, "frames of ours in a traceback of theirs"
    assert not done.stdout
    assert doctor.left() == ["train.py"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("missing.py",), "there is no file missing.py"),
        (("train",), "expected a script such as train.py, or package.module:Name"),
        (("a:B", "--lr"), "options stand before it"),
        (("--data", "loader", "a:B"), "expected module:function"),
        (("--budget", "2", "a:B"), "--budget"),
    ],
)
def test_wrong_usage_is_a_sentence(words, said):
    done = CliRunner().invoke(build(), ["doctor", *words])
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.replace("│", " ").split())


def test_ctrl_c_ends_it_and_leaves_nothing(doctor):
    doctor.write("train.py", "import time\nopen('begun', 'w').close()\ntime.sleep(100)")
    child = subprocess.Popen(doctor.command("train.py"), cwd=doctor.folder, stderr=subprocess.PIPE, text=True)
    while not (doctor.folder / "begun").exists():
        assert child.poll() is None
        time.sleep(0.05)
    child.send_signal(2)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 130
    assert "interrupted" in said
    assert doctor.left() == ["begun", "train.py"]
