"""Text as windows: every character is predicted once, from those before it."""

import jax.numpy as jnp
import language_model
import numpy as np
import pytest


def text(length):
    return np.random.default_rng(length).integers(32, 127, length).astype(np.uint8)


@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_windows_hold_every_character_once_and_what_came_before(length):
    characters = text(length)
    rows, lengths = language_model.cut(characters)
    assert lengths.sum() == length
    predicted = [row[language_model.CONTEXT :][:count] for row, count in zip(rows, lengths)]
    np.testing.assert_array_equal(np.concatenate(predicted), characters)
    before = np.concatenate([np.full(language_model.CONTEXT, ord("\n")), characters])
    for index, row in enumerate(rows):
        context = before[index * language_model.WINDOW :][: language_model.CONTEXT]
        np.testing.assert_array_equal(row[: len(context)], context)


def test_long_documents_are_cut_down():
    rows, lengths = language_model.cut(text(20_000), np.random.default_rng(0))
    assert len(rows) == len(lengths) == language_model.MAX_WINDOWS


def test_unigram_entropy_of_known_frequencies():
    texts = [np.array([65, 65], np.uint8), np.array([66, 67], np.uint8)]
    expected = 0.5 * np.log(2) + 0.5 * np.log(4)
    assert language_model.unigram_entropy(texts) == pytest.approx(expected)


def test_the_model_sees_nothing_of_the_character_that_it_predicts():
    definition, params = language_model.make_model(0)
    logits = language_model.make_logits(definition)
    window = language_model.cut(text(64))[0][:, :-1]
    one = logits(params, jnp.asarray(window))
    assert one.shape == (1, language_model.WINDOW, language_model.VOCABULARY)
    changed = window.copy()
    # The character at place 20 of the window, which the logits at 20 are to predict.
    changed[0, language_model.CONTEXT + 20] ^= 1
    other = logits(params, jnp.asarray(changed))
    differs = np.any(np.asarray(one != other), axis=-1)[0]
    assert not differs[:21].any()
    assert differs[21 : 21 + language_model.CONTEXT].all()


def test_the_loss_is_that_of_the_real_characters():
    definition, params = language_model.make_model(0)
    logits = language_model.make_logits(definition)
    characters = text(100)
    windows, lengths = language_model.cut(characters)
    losses, _ = language_model.make_loss(logits)(params, (jnp.asarray(windows), lengths))
    before = np.concatenate([np.full(language_model.CONTEXT, ord("\n"), np.uint8), characters])
    contexts = np.stack([before[place:][: language_model.CONTEXT] for place in range(100)])
    found = np.asarray(logits(params, jnp.asarray(contexts))[:, 0], np.float64)
    total = np.log(np.exp(found).sum(axis=1)).sum() - found[np.arange(100), characters].sum()
    assert float(jnp.vdot(losses, lengths.astype(np.float32))) == pytest.approx(total, rel=1e-4)
