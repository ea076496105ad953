import jax
import numpy as np
import pytest

import icldyn as ic
from icldyn.measures import trajectory_pca as pca

RNG = np.random.default_rng(0)


def rows(M, P, noise=1e-3):
    """Rows near a plane of unequal spread."""
    plane = np.linalg.qr(RNG.normal(size=(P, 2)))[0].T
    return 5 + RNG.normal(size=(M, 2)) * np.array([3.0, 1.0]) @ plane + noise * RNG.normal(size=(M, P))


@pytest.mark.parametrize(("M", "P"), [(20, 200), (60, 15)])  # by the Gram matrix, by SVD
def test_components_are_those_of_the_covariance(M, P):
    F = rows(M, P)
    found = pca.fit(F, 3)
    values, vectors = np.linalg.eigh(np.cov(F.T))
    for k in range(2):
        assert abs(found.components[k] @ vectors[:, -1 - k]) == pytest.approx(1, abs=1e-9)
    np.testing.assert_allclose(found.shares, values[::-1][:3] / values.sum(), rtol=1e-8)
    np.testing.assert_allclose(found.components @ found.components.T, np.eye(3), atol=1e-9)
    assert (np.max(found.components, axis=1) == np.abs(found.components).max(axis=1)).all()


def test_both_routes_agree():
    F = rows(12, 12)
    wide = np.concatenate([F, np.zeros((12, 30))], axis=1)  # zeros change the route, not the answer
    one, other = pca.fit(F), pca.fit(wide)
    np.testing.assert_allclose(one.components, other.components[:, :12], atol=1e-9)
    np.testing.assert_allclose(one.shares, other.shares, rtol=1e-9)


def test_references_are_projected_and_change_no_component():
    F, references = rows(20, 50), RNG.normal(size=(2, 50))
    found = pca.fit(F)
    np.testing.assert_allclose(pca.project(found, found.mean), 0, atol=1e-12)
    on_axis = found.mean + 7 * found.components[1]
    np.testing.assert_allclose(pca.project(found, on_axis), [0, 7], atol=1e-9)
    wanted = (references - F.mean(0)) @ np.asarray(found.components).T
    np.testing.assert_allclose(pca.project(found, references), wanted, rtol=1e-10)
    runs = F.reshape(4, 5, 50)  # runs and checkpoints keep their axes
    np.testing.assert_allclose(pca.project(found, runs)[2, 3], pca.project(found, F[13]), atol=1e-12)


def test_fits_map_and_refuse_more_components_than_rows_span():
    stacks = np.stack([rows(6, 40), rows(6, 40)])
    np.testing.assert_allclose(jax.vmap(pca.fit)(stacks).shares[1], pca.fit(stacks[1]).shares, rtol=1e-9)
    with pytest.raises(ic.BadArgument, match="Argument `v` must be at most 5, but is 6"):
        pca.fit(stacks[0], 6)
