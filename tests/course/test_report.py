"""Formulas in the pages of a run: drawn without a network, left alone inside code."""

from course.run.report import formulas_as_mathml


def test_formulas_become_mathml() -> None:
    html = formulas_as_mathml("<p>With $a &lt; b$:</p><p>$$x^2 \\tag{1}$$</p>")
    assert html.count("<math") == 2
    assert 'display="inline"' in html and 'display="block"' in html
    assert "$" not in html and "tag" not in html and html.count("<mn>1</mn>") == 1


def test_code_keeps_its_dollars() -> None:
    text = "<p>cost <code>$5 and $6</code></p><pre>echo $HOME; echo $PATH</pre>"
    assert formulas_as_mathml(text) == text


def test_a_formula_that_cannot_be_read_stays() -> None:
    text = "<p>$\\left( x$</p>"
    assert formulas_as_mathml(text) == text
