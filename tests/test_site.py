"""The site: its menu, its links and its formulas, and what it says of the command line and of errors."""

import importlib.util
import inspect
import re
from functools import partial
from types import SimpleNamespace

import pytest
import torch

import fusedloss
from bench.files import ROOT
from fusedloss import distributed
from fusedloss.__main__ import main

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
REPOSITORY = "https://github.com/fusedloss/fusedloss"
FENCED = re.compile(r"^( *)```.*?^\1```$", re.DOTALL | re.MULTILINE)
LINK = re.compile(r"\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
OPTION = re.compile(r"--[a-z][a-z-]*")
FORMULA = re.compile(r"^```math\n(.+?)^```$", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def hooks():
    """The module of docs/, which is no package."""
    pytest.importorskip("mkdocs", reason="needs the extra `docs`")
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------- menu and links


def test_every_page_is_in_the_menu_once():
    listed = re.findall(r"^ +- (?:[\w ]+: )?([\w/]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(listed) == [page.relative_to(DOCS).as_posix() for page in PAGES]


def text_of(page):
    """Markdown, with what it includes, without code."""
    found = re.sub(r'^--8<-- "(.+)"$', lambda name: (ROOT / name[1]).read_text(), page.read_text(), flags=re.MULTILINE)
    return FENCED.sub("", found)


def anchors(page):
    """Of its headings, as GitHub and MkDocs make them."""
    words = (re.sub(r"[^\w\- ]", "", heading.lower()).strip() for heading in HEADING.findall(text_of(page)))
    return {re.sub(r"[ -]+", "-", heading) for heading in words}


def broken(page):
    """The links of a page to our own files that lead nowhere."""
    for link in LINK.findall(text_of(page)):
        path, _, anchor = link.partition("#")
        if path.startswith(REPOSITORY):
            target = ROOT / re.sub(r"^/(blob|tree)/main/|^/", "", path.removeprefix(REPOSITORY))
            if re.match(r"/(actions|discussions|issues)", path.removeprefix(REPOSITORY)):
                continue
        elif ":" in path:
            continue
        else:
            target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            yield link


@pytest.mark.parametrize("page", [*PAGES, *ROOT.glob("*.md")], ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    assert [*broken(page)] == []


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# One\n[a](b.md) [c](page.md#two) [d](#one) [e]({REPOSITORY}/blob/main/none.py)\n")
    assert [*broken(page)] == ["b.md", "page.md#two", f"{REPOSITORY}/blob/main/none.py"]


# ------------------------------------------------------------------------------------------------- what the hook does


def rewritten(markdown, at="page.md"):
    """A page of docs/ as the hook leaves it, and the pictures that it has added to the site."""
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import File, Files

    config = MkDocsConfig(str(ROOT / "mkdocs.yml"))
    config.load_dict(dict(site_name="fusedloss", repo_url=REPOSITORY, plugins=[], hooks=["docs/hooks.py"]))
    assert config.validate() == ([], [])
    file = File(at, str(DOCS), config.site_dir, use_directory_urls=True)
    files = Files([file])
    found = config.plugins.on_page_markdown(markdown, page=SimpleNamespace(file=file), config=config, files=files)
    return found, {added.src_uri: added.abs_src_path for added in files if added is not file}


@pytest.mark.parametrize(
    ("at", "markdown", "expected"),
    [
        ("page.md", "[a](../README.md)", f"[a]({REPOSITORY}/blob/main/README.md)"),
        ("page.md", "[a](../README.md#layout)", f"[a]({REPOSITORY}/blob/main/README.md#layout)"),
        ("page.md", "[a](../examples)", f"[a]({REPOSITORY}/tree/main/examples)"),
        ("losses/page.md", "[a](../../kernels/engine.py)", f"[a]({REPOSITORY}/blob/main/kernels/engine.py)"),
        ("losses/page.md", "[a](../start.md) [b](https://a.b/../c)", "[a](../start.md) [b](https://a.b/../c)"),
        ("page.md", "```python lightning\n1\n```", "```python\n1\n```"),
    ],
)
def test_a_page_of_github_becomes_one_of_the_site(hooks, at, markdown, expected):
    assert rewritten(markdown, at) == (expected, {})


def test_a_picture_of_the_results_is_copied(hooks):
    path = next((ROOT / "bench" / "results" / "plots").glob("*.png"))
    found = rewritten(2 * f"![a](../../bench/results/plots/{path.name})", "losses/page.md")
    assert found == (2 * f"![a](../images/{path.name})", {f"images/{path.name}": str(path)})


@pytest.mark.parametrize("link", ["../none.md", "../../outside.md"])
def test_a_link_to_nothing_ends_the_build(hooks, link):
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=f"page.md has a link to {re.escape(link)}"):
        rewritten(f"[a]({link})")


def test_all_of_every_formula_is_understood(hooks):
    """What latex2mathml does not know it leaves as it is."""
    texts = [page.read_text() for page in PAGES]
    texts += [inspect.getdoc(f) for f in vars(fusedloss).values() if inspect.isfunction(f)]
    found = [formula for text in texts for formula in FORMULA.findall(text)]
    assert found
    assert [formula for formula in found if "\\" in hooks.math(formula)] == []


def test_a_formula_becomes_mathml(hooks):
    found = hooks.math(r"\frac{a}{b} = \arg\min_i c_i")
    assert found.startswith('<div class="math"><math') and "<mfrac>" in found and "<mo>arg</mo>" in found


# ------------------------------------------------------------------------------------------------- what pages say


def test_every_public_name_is_described_once():
    shown = re.findall(r"^::: ([\w.]+)$", "\n".join(page.read_text() for page in PAGES), re.MULTILINE)
    public = [f"fusedloss.{name}" for name in fusedloss.__all__ if name != "reference"]
    public += [f"fusedloss.distributed.{name}" for name in distributed.__all__]
    assert len(shown) == len(set(shown))
    assert set(public) <= set(shown)


@pytest.mark.parametrize("command", ["doctor", "demo", "report", "tune"])
def test_the_page_of_the_command_line_names_every_option(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    page = (DOCS / "reference" / "command_line.md").read_text()
    (section,) = re.findall(rf"^## {command}$(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    described = {option for row in re.findall(r"^\| `(--[^`]+)`", section, re.MULTILINE) for option in row.split()[:1]}
    assert described == set(OPTION.findall(capsys.readouterr().out)) - {"--help"}


def errors():
    x, labels, ones = torch.zeros(8, 4), torch.arange(8) % 4, torch.ones(8, 4)
    y = torch.randn(8, 4, requires_grad=True)
    supcon = fusedloss.supcon_loss
    yield partial(supcon, x, labels.float())
    yield partial(supcon, x, labels[:, None])
    yield partial(supcon, x.view(2, 4, 4), labels)
    yield partial(fusedloss.nt_xent_loss, x, labels)
    yield partial(fusedloss.info_nce_loss, x, x.half())
    yield partial(supcon, x, labels, temperature=0)
    yield partial(fusedloss.ArcFaceLoss, num_classes=4, dim=4, margin=30)
    yield partial(supcon, x, labels, tau=0.1)
    yield partial(supcon, x, labels, torch.cat([ones, x]), labels.repeat(2), ref_offset=0)
    yield partial(fusedloss.arcface_loss, x, torch.zeros(3, 4), labels)
    yield partial(fusedloss.contrastive_loss, x, x, labels)
    yield partial(fusedloss.ClipLoss(), x, x)
    yield partial(distributed.GroupLoss, fusedloss.ContrastiveLoss())
    yield lambda: torch.autograd.functional.hessian(lambda rows: supcon(rows, labels), y)
    yield lambda: torch.func.jvp(lambda rows: supcon(rows, labels), (x,), (x,))
    yield partial(fusedloss.set_backend, "cuda")


def test_the_messages_on_the_page_are_those_of_errors():
    page = (DOCS / "reliability.md").read_text()
    (section,) = re.findall(r"^## Messages$(.*?)(?=^## )", page, re.DOTALL | re.MULTILINE)
    shown = re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)
    raised = []
    for call in errors():
        with pytest.raises((TypeError, ValueError, RuntimeError)) as error:
            call()
        raised.append(str(error.value))
    assert raised == shown
