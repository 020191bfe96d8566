"""Average pooling is the matrix of the paper."""

from tinyspur.layers import AveragePoolingMatrix


def test_average_pooling_is_the_matrix_of_equation_11():
    W = AveragePoolingMatrix(1, (4,), 2)
    assert W.toarray().tolist() == [[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]
