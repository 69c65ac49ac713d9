"""Laws of per-record gradients that are not written out: norms never too small, sums the same."""

from __future__ import annotations

from weakref import ref

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from dpaudit.trainer.engine.clipping import ROUNDING_MARGIN
from dpaudit.trainer.engine.gradient_forms import (
    FLOAT32_ROUNDING,
    RECORDS_AT_ONCE,
    DenseGradients,
    EmbeddingRows,
    GradientForm,
    OuterProducts,
    SharedInnerProducts,
    SumOfForms,
    TiedTable,
    merge_forms,
    share_inner_products,
    square_norms_of_all,
)
from dpaudit.trainer.engine.rules import RULES
from dpaudit.trainer.engine.rules.convolution import ConvolutionGeometry, ConvolutionGradients

ROWS, COLUMNS = 4, 6  # of the parameter where several kinds of forms are mixed
NEVER_SMALLER = 1 - 1e-7
WELL_INSIDE = (
    1 + ROUNDING_MARGIN
) / 2  # half of what the clip norm is shrunk by; the sum needs the rest
NOT_MUCH_LARGER = 1 + 1e-6

often = settings(max_examples=40)
sizes = st.sampled_from([1e-6, 1.0, 1e6])
few, small = st.integers(1, 6), st.integers(1, 4)


def cancelling(values: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Return both twice along dimension 1, the second time with the sign of ``values`` turned."""
    return torch.cat([values, -values], dim=1), torch.cat([others, others], dim=1)


@st.composite
def denses(
    draw: st.DrawFn, records: int | None = None, shape: tuple[int, ...] = ()
) -> DenseGradients:
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5)) if records is None else records
    shape = shape or tuple(draw(st.lists(few, min_size=1, max_size=3)))
    return DenseGradients(draw(sizes) * torch.randn(count, *shape))


@st.composite
def outer_products(
    draw: st.DrawFn, records: int | None = None, shape: tuple[int, int] | None = None
) -> OuterProducts:
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5)) if records is None else records
    terms = draw(few)
    p, d = shape or (draw(st.integers(1, 24)), draw(st.integers(1, 24)))
    rows, columns = draw(sizes) * torch.randn(count, terms, p), torch.randn(count, terms, d)
    if draw(st.booleans()):
        rows, columns = cancelling(rows, columns)
        rows[0, 0] *= 1 + draw(st.sampled_from([0.0, 1e-3, 1.0]))
    return OuterProducts(rows, columns)


@st.composite
def table_rows(
    draw: st.DrawFn, records: int | None = None, shape: tuple[int, int] | None = None
) -> EmbeddingRows:
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 5)) if records is None else records
    size, width = shape or (draw(st.integers(1, 5)), draw(st.integers(1, 8)))
    index = torch.randint(0, size, (count, draw(few)))
    values = draw(sizes) * torch.randn(*index.shape, width)
    if draw(st.booleans()):
        values, index = cancelling(values, index)
        values[0, 0] *= 1 + draw(st.sampled_from([0.0, 1e-3, 1.0]))
    return EmbeddingRows(index, values, size)


@st.composite
def several(draw: st.DrawFn, records: int | None = None) -> SumOfForms:
    count = draw(st.integers(1, 5)) if records is None else records
    shape = (ROWS, COLUMNS)
    kinds = st.sampled_from([denses, outer_products, table_rows])
    chosen = draw(st.lists(kinds, min_size=2, max_size=4))
    parts: tuple[GradientForm, ...] = tuple(
        draw(kind(records=count, shape=shape)) for kind in chosen
    )
    if draw(st.booleans()):
        left = draw(st.sampled_from([0.0, 1e-3]))
        parts = (*parts, DenseGradients((left - 1) * SumOfForms(parts).dense()))
    return SumOfForms(parts)


@st.composite
def tied_tables(draw: st.DrawFn, records: int | None = None) -> TiedTable:
    count = draw(st.integers(1, 5)) if records is None else records
    table = draw(table_rows(records=count, shape=(ROWS, COLUMNS)))
    outer = draw(outer_products(records=count, shape=(ROWS, COLUMNS)))
    if draw(st.booleans()):  # the matrix undoes the table's look-ups, all or all but a part
        undone = functional.one_hot(table.index, ROWS).float() * (
            draw(st.sampled_from([0.0, 1e-3])) - 1
        )
        outer = OuterProducts(undone, table.values)
    return TiedTable(outer, table)


@st.composite
def convolved(draw: st.DrawFn, records: int | None = None) -> ConvolutionGradients:
    torch.manual_seed(draw(st.integers(0, 2**32)))
    count = draw(st.integers(1, 4)) if records is None else records
    dimensions, groups = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    sides = st.integers(1, 2)
    kernel, stride, dilation, more = (
        tuple(draw(sides) for _ in range(dimensions)) for _ in range(4)
    )
    padding = tuple(draw(st.integers(0, 1)) for _ in range(dimensions))
    kind = [functional.conv1d, functional.conv2d, functional.conv3d][dimensions - 1]
    weight = torch.randn(groups * draw(small), draw(small), *kernel)
    space = (d * (k - 1) + m for d, k, m in zip(dilation, kernel, more, strict=True))
    x = torch.randn(count, groups * weight.shape[1], *space)
    g = draw(sizes) * torch.randn_like(kind(x, weight, None, stride, padding, dilation, groups))
    return ConvolutionGradients(
        x, g, weight, ConvolutionGeometry(stride, padding, dilation, groups)
    )


forms = st.one_of(denses(), outer_products(), table_rows(), tied_tables(), several(), convolved())


def flat(values: Tensor) -> Tensor:
    """Return per-record values as rows, in float64."""
    return values.double().flatten(1)


def in_double(form: ConvolutionGradients) -> ConvolutionGradients:
    return ConvolutionGradients(
        form.x.double(), form.g.double(), form.weight.double(), form.geometry
    )


def exact(form: GradientForm) -> Tensor:
    """Return the gradients as rows, computed in float64."""
    match form:
        case OuterProducts():
            return flat(torch.einsum("ntp,ntd->npd", form.rows.double(), form.columns.double()))
        case EmbeddingRows():
            return flat(EmbeddingRows(form.index, form.values.double(), form.size).dense())
        case ConvolutionGradients():
            return flat(in_double(form).dense())
        case SumOfForms():
            return torch.stack([exact(part) for part in form.forms]).sum(dim=0)
        case TiedTable():
            return exact(form.outer) + exact(form.table)
        case _:
            return flat(form.dense())


def magnitude(form: GradientForm) -> Tensor:
    """Return, by record, a bound of the norm if nothing cancelled: rounding is relative to this."""
    match form:
        case OuterProducts():
            return (form.rows.double().norm(dim=2) * form.columns.double().norm(dim=2)).sum(dim=1)
        case EmbeddingRows():
            return form.values.double().norm(dim=2).sum(dim=1)
        case ConvolutionGradients():
            most = [t.double().flatten(1).norm(dim=1) for t in (form.x, form.g)]
            return most[0] * most[1] * form.weight[0, 0].numel() ** 0.5
        case SumOfForms():
            return torch.stack([magnitude(part) for part in form.forms]).sum(dim=0)
        case TiedTable():
            return magnitude(form.outer) + magnitude(form.table)
        case _:
            return exact(form).norm(dim=1)


def square_interval(form: GradientForm) -> tuple[Tensor, Tensor]:
    """Return, by record, the least and the most that a computed square norm may be.

    With g the gradient, W its magnitude and F = FLOAT32_ROUNDING:

    - Written out, float32 gives g with an error of at most 1e-6 W, and a norm with a relative
      error of at most F / 2. So the norm lies in |g| (1 +- 1e-6) +- 1e-6 W.
    - By inner products, the T^2 products sum to |g|^2 + e with |e| <= F W^2, and F W^2 is added.
      So the *square* lies in [|g|^2, |g|^2 + 2 F W^2].
    - With a tied table, F W^2 is added to the square of the products, and again to that of the
      sum. So the square lies in [|g|^2, |g|^2 + 3 F W^2].

    Where the terms cancel, |g| is about 0 and the square is all rounding. The norm, its root, is
    then anywhere in [0, sqrt(2 F) W], a thousand times more than 1e-6 W. Two evaluations of one
    record are therefore compared with this interval of squares, never by a difference of norms.
    """
    truth, whole = exact(form).norm(dim=1), magnitude(form)
    least = (truth * NEVER_SMALLER - 1e-6 * whole).clamp(min=0.0).square()
    roundings = 3 if isinstance(form, TiedTable) else 2
    most = (truth * NOT_MUCH_LARGER + 1e-6 * whole).square()
    most += roundings * FLOAT32_ROUNDING * whole.square()
    return least, most


def factors_for(form: GradientForm) -> Tensor:
    return torch.rand(len(form.square_norms()), dtype=torch.float64)


# --- norms


@given(forms)
@often
def test_a_norm_is_not_smaller_than_that_of_the_gradient_by_what_clipping_allows(
    form: GradientForm,
) -> None:
    norms = form.square_norms().sqrt()
    assert (norms >= flat(form.dense()).norm(dim=1) * WELL_INSIDE).all()


@given(forms)
@often
def test_a_norm_is_never_smaller_than_that_of_the_gradient(form: GradientForm) -> None:
    norms = form.square_norms().sqrt()
    assert norms.dtype == torch.float64
    assert (norms >= flat(form.dense()).norm(dim=1) * NEVER_SMALLER).all()


@given(forms)
@often
def test_a_norm_is_that_of_the_gradient_up_to_the_rounding_that_is_added(
    form: GradientForm,
) -> None:
    squares, (least, most) = form.square_norms(), square_interval(form)
    assert ((least <= squares) & (squares <= most)).all()


@given(st.one_of(denses(), table_rows()))
@often
def test_norms_of_forms_that_are_added_up_first_are_exact(form: GradientForm) -> None:
    truth = flat(form.dense()).norm(dim=1)
    assert torch.allclose(form.square_norms().sqrt(), truth, rtol=3e-7 + FLOAT32_ROUNDING, atol=0.0)


def longest_addition(form: GradientForm, norms: Tensor) -> float:
    """Return the most that a record adds to the sum, over the norm that it is cut at."""
    longest = 0.0
    for record, norm in enumerate(norms.tolist()):
        clip_norm = 1e-3 * norm or 1.0
        factors = torch.zeros(len(norms), dtype=torch.float64)
        factors[record] = min(1.0, clip_norm * ROUNDING_MARGIN / norm) if norm else 1.0
        longest = max(longest, float(form.weighted(factors).double().norm()) / clip_norm)
    return longest


@given(forms)
@often
def test_clipped_addition_of_a_record_is_within_the_clip_norm(
    form: GradientForm,
) -> None:
    """The law that sensitivity stands on: of the sum that is really made."""
    assert longest_addition(form, form.square_norms().sqrt()) <= 1


@given(forms)
@often
def test_clipped_addition_without_another_record_is_within_the_clip_norm(
    form: GradientForm,
) -> None:
    norms = form.square_norms().sqrt()
    kept = torch.arange(len(norms)) > 0
    assert longest_addition(form.only(kept), norms[kept]) <= 1


@given(outer_products(), st.integers(1, 4))
@often
def test_terms_that_cancel_leave_a_norm_that_covers_their_rounding(
    form: OuterProducts, times: int
) -> None:
    rows, columns = form.rows, form.columns
    for _ in range(times):
        rows, columns = cancelling(rows, columns)
    nothing = OuterProducts(rows, columns)
    norms = nothing.square_norms().sqrt()
    assert (norms >= flat(nothing.dense()).norm(dim=1) * WELL_INSIDE).all()
    assert longest_addition(nothing, norms) <= 1


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("cancel", [True, False])
def test_order_of_terms_keeps_a_square_norm_in_its_interval(cancel: bool, seed: int) -> None:
    """Another order is another rounding, as on another processor or for another batch."""
    torch.manual_seed(seed)
    rows, columns = torch.randn(4, 4, 24), torch.randn(4, 4, 24)
    if cancel:
        rows, columns = cancelling(rows, columns)
    order = torch.randperm(rows.shape[1])
    form = OuterProducts(rows, columns)
    least, most = square_interval(form)
    for squares in (
        form.square_norms(),
        OuterProducts(rows[:, order], columns[:, order]).square_norms(),
    ):
        assert ((least <= squares) & (squares <= most)).all()


@pytest.mark.parametrize("terms", [1, 3, 40])
@pytest.mark.parametrize("width", [8, 64])
@pytest.mark.parametrize("seed", range(5))
def test_both_ways_to_the_norm_of_outer_products_agree(terms: int, width: int, seed: int) -> None:
    torch.manual_seed(seed)
    form = OuterProducts(torch.randn(3, terms, width), torch.randn(3, terms, width))
    truth = exact(form).norm(dim=1)
    norms = form.square_norms().sqrt()
    assert (norms >= truth * WELL_INSIDE).all()
    assert (
        norms <= (truth.square() + 2 * FLOAT32_ROUNDING * magnitude(form).square()).sqrt()
    ).all()


@pytest.mark.parametrize("fill", [1.0, 1.015, 1.3, 1.6, 1.9, "random"])
@pytest.mark.parametrize("entries", [1_000, 100_000, 2_000_000])
def test_a_norm_of_many_entries_is_not_too_small(entries: int, fill: float | str) -> None:
    """Float32 sums of many squares lose more than the clip norm is shrunk by."""
    torch.manual_seed(0)
    values = torch.randn(1, entries) if fill == "random" else torch.full((1, entries), fill)
    norm = DenseGradients(values).square_norms().sqrt()
    assert (norm >= flat(values).norm(dim=1) * ROUNDING_MARGIN).all()


@pytest.mark.parametrize("fill", [1.0, 1.015, 1.3, 1.6, 1.9])
@pytest.mark.parametrize("terms", [1, 4])
def test_a_norm_of_wide_outer_products_is_not_too_small(terms: int, fill: float) -> None:
    form = OuterProducts(torch.full((1, terms, 2048), fill), torch.full((1, terms, 1024), fill))
    truth = terms * fill**2 * (2048 * 1024) ** 0.5
    (norm,) = form.square_norms().sqrt().tolist()
    filled = float(form.rows[0, 0, 0].double() ** 2) * terms * (2048 * 1024) ** 0.5
    assert filled == pytest.approx(truth, rel=1e-6)
    assert norm >= filled * ROUNDING_MARGIN


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("kind", ["dense", "outer", "outer written out", "rows", "several"])
def test_a_record_out_of_bounds_has_no_finite_norm_and_spoils_no_other(
    kind: str, bad: float
) -> None:
    torch.manual_seed(0)
    dense = DenseGradients(torch.randn(3, ROWS, COLUMNS))
    outer = OuterProducts(torch.randn(3, 2, ROWS), torch.randn(3, 2, COLUMNS))
    written = OuterProducts(torch.randn(3, 9, ROWS), torch.randn(3, 9, COLUMNS))
    rows = EmbeddingRows(torch.randint(0, ROWS, (3, 5)), torch.randn(3, 5, COLUMNS), ROWS)
    form, entries = {
        "dense": (dense, dense.values),
        "outer": (outer, outer.columns),
        "outer written out": (written, written.rows),
        "rows": (rows, rows.values),
        "several": (SumOfForms((outer, rows)), rows.values),
    }[kind]
    entries[1] = bad
    squares = form.square_norms()
    assert torch.isfinite(squares).tolist() == [True, False, True]
    kept = torch.tensor([True, False, True])
    assert torch.isfinite(form.only(kept).weighted(torch.ones(2, dtype=torch.float64))).all()


def test_a_parameter_that_is_a_number_has_norms_and_a_sum() -> None:
    form = DenseGradients(torch.tensor([3.0, -4.0]))
    assert form.square_norms().tolist() == [
        9.0 * (1 + FLOAT32_ROUNDING),
        16.0 * (1 + FLOAT32_ROUNDING),
    ]
    assert float(form.weighted(torch.tensor([1.0, 0.5], dtype=torch.float64))) == 1.0


# --- sums


@given(forms)
@often
def test_a_weighted_sum_is_that_of_the_gradients(form: GradientForm) -> None:
    factors = factors_for(form)
    expected = (factors[:, None] * exact(form)).sum(dim=0)
    rounding = 1e-6 * float((factors * magnitude(form)).sum())
    got = form.weighted(factors)
    assert got.shape == form.dense().shape[1:]
    assert (got.double().flatten() - expected).norm() <= rounding


@given(forms)
@often
def test_the_gradients_written_out_are_those_of_the_form(form: GradientForm) -> None:
    gaps = (flat(form.dense()) - exact(form)).norm(dim=1)
    assert (gaps <= 1e-6 * magnitude(form)).all()


@given(forms)
@often
def test_a_sum_is_the_same_before_and_after_norms_are_taken(form: GradientForm) -> None:
    factors = factors_for(form)
    again = form.only(torch.ones(len(factors), dtype=torch.bool))
    again.square_norms()
    gap = (again.weighted(factors) - form.weighted(factors)).double().norm()
    assert gap <= 1e-6 * float((factors * magnitude(form)).sum())


# --- parts and sums of forms


@given(forms, st.data())
@often
def test_selected_records_have_their_gradients_and_norms(
    form: GradientForm, data: st.DataObject
) -> None:
    count = len(form.square_norms())
    which = torch.tensor(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    some, rounding = form.only(which), 1e-6 * magnitude(form)[which]
    assert ((flat(some.dense()) - flat(form.dense())[which]).norm(dim=1) <= rounding).all()
    least, most = (bound[which] for bound in square_interval(form))
    for squares in (some.square_norms(), form.square_norms()[which]):
        assert ((least <= squares) & (squares <= most)).all()
    assert some.weighted(torch.ones(int(which.sum()), dtype=torch.float64)).shape == (
        form.dense().shape[1:])  # fmt: skip


@given(forms)
@often
@example(EmbeddingRows(torch.zeros(2, 3, dtype=torch.long), torch.ones(2, 3, 4), 5))
def test_no_records_have_no_norms_and_a_sum_of_zeros(form: GradientForm) -> None:
    none = form.only(torch.zeros(len(form.square_norms()), dtype=torch.bool))
    assert none.square_norms().shape == (0,)
    assert none.square_norms().dtype == torch.float64
    nothing = none.weighted(torch.zeros(0, dtype=torch.float64))
    assert torch.equal(nothing, torch.zeros(form.dense().shape[1:]))


@given(st.sampled_from([denses, outer_products, table_rows]), st.integers(1, 4), few, st.data())
@often
def test_uses_of_one_kind_are_joined_to_their_sum(
    kind: st.SearchStrategy, records: int, uses: int, data: st.DataObject
) -> None:
    parts = [data.draw(kind(records=records, shape=(ROWS, COLUMNS))) for _ in range(uses)]
    one = merge_forms(parts)
    assert type(one) is type(parts[0])
    assert_is_sum(one, parts)


@given(convolved(), st.integers(2, 3))
@often
def test_uses_of_one_convolution_are_merged_to_their_sum(
    form: ConvolutionGradients, uses: int
) -> None:
    parts = [form] * uses
    assert_is_sum(merge_forms(parts), parts)


@given(st.integers(1, 4), st.data())
@often
def test_uses_of_several_kinds_are_merged_to_their_sum(records: int, data: st.DataObject) -> None:
    shape = (ROWS, COLUMNS)
    kinds = data.draw(st.permutations([denses, outer_products, table_rows, denses]))
    parts: list[GradientForm] = [data.draw(kind(records=records, shape=shape)) for kind in kinds]
    parts.append(data.draw(several(records=records)))
    assert_is_sum(merge_forms(parts), parts)
    assert_is_sum(merge_forms([parts[-1], parts[-1]]), [parts[-1], parts[-1]])


@given(st.integers(1, 4), st.integers(1, 2), st.data())
@often
def test_a_matrix_and_a_table_are_merged_without_writing_gradients_out(
    records: int, uses: int, data: st.DataObject
) -> None:
    drawn = [data.draw(tied_tables(records=records)) for _ in range(uses)]
    parts: list[GradientForm] = [part for one in drawn for part in (one.table, one.outer)]
    one, (few, *_) = merge_forms(parts), (part for part in parts if isinstance(part, OuterProducts))
    if uses == 1 and few.rows.shape[1] * (ROWS + COLUMNS) <= ROWS * COLUMNS:
        assert type(one) is TiedTable
    assert_is_sum(one, parts)
    assert_is_sum(drawn[0].joined(drawn[1:]), parts)


def assert_is_sum(one: GradientForm, parts: list[GradientForm]) -> None:
    expected = torch.stack([exact(part) for part in parts]).sum(dim=0)
    whole = torch.stack([magnitude(part) for part in parts]).sum(dim=0)
    assert ((flat(one.dense()) - expected).norm(dim=1) <= 1e-6 * whole).all()
    norms = one.square_norms().sqrt()
    assert (norms >= flat(one.dense()).norm(dim=1) * WELL_INSIDE).all()
    most = (expected.norm(dim=1) + 1e-6 * whole).square() + 2 * FLOAT32_ROUNDING * whole.square()
    assert (norms.square() <= most).all()  # of squares: see square_interval


@pytest.mark.parametrize("records", [1, RECORDS_AT_ONCE, RECORDS_AT_ONCE + 1, 150])
def test_norms_of_several_kinds_are_the_same_for_any_number_of_records(records: int) -> None:
    torch.manual_seed(0)
    table = EmbeddingRows(
        torch.randint(0, ROWS, (records, 3)), torch.randn(records, 3, COLUMNS), ROWS
    )
    outer = OuterProducts(torch.randn(records, 2, ROWS), torch.randn(records, 2, COLUMNS))
    form = SumOfForms((table, outer))
    squares, truth = form.square_norms(), exact(form).norm(dim=1).square()
    assert (squares >= truth * WELL_INSIDE**2).all()
    assert (
        squares <= truth * NOT_MUCH_LARGER + 2 * FLOAT32_ROUNDING * magnitude(form).square()
    ).all()


@pytest.mark.parametrize("width", [3, 1024, 1500])
def test_norms_that_a_weight_and_its_bias_share_are_those_of_each(width: int) -> None:
    x, g = torch.randn(4, 5), torch.randn(4, width)
    g[1] = 0.0
    weight, bias = torch.zeros(width, 5), torch.zeros(width)
    operation = RULES[functional.linear](x, weight, bias)
    assert operation is not None
    (_, of_weight), (_, of_bias) = operation.forms(x, g)
    assert of_weight is not None
    assert of_bias is not None
    rows, columns = g.double().square().sum(dim=1), x.double().square().sum(dim=1)
    for form, exact in ((of_bias, rows), (of_weight, rows * columns)):
        assert (form.square_norms() >= exact * ROUNDING_MARGIN).all()
        torch.testing.assert_close(form.square_norms(), exact, rtol=2e-6, atol=0.0)
    only = torch.tensor([True, False, False, True])
    torch.testing.assert_close(of_bias.only(only).square_norms(), rows[only], rtol=2e-6, atol=0.0)


def test_gradients_with_the_same_columns_share_inner_products_and_keep_their_norms() -> None:
    records, terms, width = 3, 2, 8
    x = torch.randn(records, terms, width)
    forms: dict[str, GradientForm | None] = {
        "query": OuterProducts(torch.randn(records, terms, width), x),
        "unused": None,
        "key": OuterProducts(torch.randn(records, terms, 2 * width), x.view(x.shape)),
        "copy": OuterProducts(torch.randn(records, terms, width), x.clone()),
        "other order": OuterProducts(torch.randn(records, terms, width), x.mT.contiguous().mT),
        "bias": DenseGradients(torch.randn(records, width)),
    }
    forms["value"] = OuterProducts(torch.randn(records, terms, 3 * width), x)
    forms["first half"] = OuterProducts(torch.randn(2, terms, width), x[:2])
    shared = share_inner_products(forms)
    assert list(shared) == list(forms)
    alone = {name for name, form in shared.items() if form is forms[name]}
    assert alone == {"unused", "copy", "other order", "bias", "first half"}
    for name in ("query", "key", "value", "query"):  # the last one comes after all have taken them
        own, plain = shared[name], forms[name]
        assert own is not None
        assert plain is not None
        assert torch.equal(own.square_norms(), plain.square_norms())


def test_shared_inner_products_are_dropped_after_their_last_use() -> None:
    shared = SharedInnerProducts(torch.randn(2, 3, 4), sharers=2)
    found = ref(shared.take())
    assert found() is shared.take()
    assert found() is None


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e15, 1e25, float("inf"), float("nan")])
@pytest.mark.parametrize("covered", [True, False])
def test_norms_of_several_parameters_are_bit_for_bit_those_of_each(
    scale: float, *, covered: bool
) -> None:
    torch.manual_seed(0)
    forms: list[GradientForm | None] = []
    for outputs, inputs in ((3, 5), (2, 3), (1100, 4)):
        x, weight = torch.randn(6, inputs) * scale, torch.randn(outputs, inputs)
        operation = RULES[functional.linear](x, weight, torch.randn(outputs))
        assert operation is not None
        forms += [form for _, form in operation.forms(x, torch.randn(6, outputs) * scale)]
    if not covered:
        forms += [None, DenseGradients(torch.randn(6, 7)), SumOfForms((forms[0], forms[0]))]
    found = square_norms_of_all(forms, torch.zeros(6))
    zeros = torch.zeros(6, dtype=torch.float64)
    each = [zeros if form is None else form.square_norms() for form in forms]
    assert found.dtype is torch.float64
    assert torch.equal(found.nan_to_num(-1), torch.stack(each).nan_to_num(-1))
