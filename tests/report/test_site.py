import pytest

from cdm_jax.errors import UserError
from cdm_jax.report.site import Site


@pytest.mark.parametrize("name", ["../x.html", "patients/../../x.html", "/tmp/x.html"])
def test_no_page_leaves_the_folder(name, tmp_path):
    site = Site(tmp_path / "report")
    with pytest.raises(UserError, match="leads out of"):
        site.write(name, "page")
    assert not list(tmp_path.rglob("*.html"))
    assert (tmp_path / "report" / site.write("patients/x..y.html", "page")).read_text() == "page"
