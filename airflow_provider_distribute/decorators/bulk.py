# SPDX-License-Identifier: Apache-2.0

"""``@task.async_chat_bulk``: a function returns the requests, the task sends them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from airflow.providers.common.compat.sdk import (
    SET_DURING_EXECUTION,
    DecoratedOperator,
    context_merge,
    determine_kwargs,
    task_decorator_factory,
)

from airflow_provider_distribute.operators.bulk import AsyncChatBulkOperator

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from airflow.providers.common.compat.sdk import Context, TaskDecorator

__all__ = ["async_chat_bulk_task"]


class _AsyncChatBulkDecoratedOperator(DecoratedOperator, AsyncChatBulkOperator):
    """
    Calls a function for the requests and sends them.

    What the function returns is not rendered as a template: prompts hold text that nobody wrote for Jinja. It
    must return the same on every attempt; another input is noticed, see ``on_input_change``.

    :param python_callable: Returns the requests, or the URI of a file.
    :param op_args: Its positional arguments.
    :param op_kwargs: Its keyword arguments.
    """

    template_fields: Sequence[str] = tuple(
        name
        for name in (*DecoratedOperator.template_fields, *AsyncChatBulkOperator.template_fields)
        if name != "requests"
    )
    template_fields_renderers: ClassVar[dict[str, str]] = {
        **DecoratedOperator.template_fields_renderers,
        **{
            name: renderer
            for name, renderer in AsyncChatBulkOperator.template_fields_renderers.items()
            if name != "requests"
        },
    }
    custom_operator_name: str = "@task.async_chat_bulk"

    def __init__(
        self,
        *,
        python_callable: Callable[..., Any],
        op_args: Collection[Any] | None = None,
        op_kwargs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            python_callable=python_callable,
            op_args=op_args,
            op_kwargs=op_kwargs,
            requests=SET_DURING_EXECUTION,
            **kwargs,
        )

    def execute(self, context: Context) -> Any:
        """Call the function, then send what it returned."""
        context_merge(context, self.op_kwargs)
        arguments = determine_kwargs(self.python_callable, self.op_args, context)
        self.requests = self.python_callable(*self.op_args, **arguments)
        return AsyncChatBulkOperator.execute(self, context)


def async_chat_bulk_task(python_callable: Callable[..., Any] | None = None, **kwargs: Any) -> TaskDecorator:
    """
    Make a task of a function that returns requests; takes what :class:`AsyncChatBulkOperator` takes.

    .. code-block:: python

        @task.async_chat_bulk(conn_id="distribute_default", result_path="s3://bucket/results")
        def questions(rows: list[str]) -> list[str]:
            return [f"Summarise: {row}" for row in rows]

    :param python_callable: The function.
    """
    return task_decorator_factory(
        python_callable=python_callable,
        decorated_operator_class=_AsyncChatBulkDecoratedOperator,
        **kwargs,
    )
