import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression


def test_sizes_lengths_and_no_text_twice(module):
    built = module("reviews", train_size=2000, val_size=200, test_size=200)
    splits = built.read()
    assert splits == built.read()
    texts = [text for column, _ in splits.values() for text in column]
    assert len(set(texts)) == len(texts) == 2400
    words = np.array([len(text.split()) for text in texts])
    assert words.min() >= 8 and words.max() <= 60 and words.std() > 10
    for split, size in {"train": 2000, "val": 200, "test": 200}.items():
        assert np.mean(splits[split][1]) == 0.5
        assert len(built.datasets[split]) == size


def test_more_training_data_leaves_the_test_set_as_it_is(module):
    few, many = (module("reviews", train_size=n, val_size=50, test_size=50).read() for n in (100, 200))
    assert few["test"] == many["test"] and few["val"] == many["val"]


@pytest.mark.parametrize("binary", [True, False])
def test_a_bag_of_words_does_not_get_the_label(module, binary):
    splits = module("reviews", train_size=8000, val_size=1, test_size=2000).read()
    bag = CountVectorizer(token_pattern=r"\S+", binary=binary)
    model = LogisticRegression(C=0.1, max_iter=200).fit(
        bag.fit_transform(splits["train"][0]), splits["train"][1]
    )
    assert model.score(bag.transform(splits["test"][0]), splits["test"][1]) < 0.6
