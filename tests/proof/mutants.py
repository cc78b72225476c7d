"""The guards of the queue that `mutations` takes away, and who should notice: texts to replace, indexes to drop."""

from dataclasses import dataclass

MACHINE = "tests/proof/test_machine.py"
CONVERSATION = f"{MACHINE}::test_a_conversation_goes_as_the_oracle_says_in_whatever_order"
BROKEN_ROWS = "tests/states/test_constraints.py::test_a_row_that_breaks_a_constraint_is_refused_under_its_name"
EVERYWHERE = ("tests/states", MACHINE, "tests/operations", "tests/races")
OPERATIONS, MODELS, EXECUTION = "mailbox_app/operations", "mailbox_app/models", "mailbox_app/execution"
KILLS = "tests/chaos/test_kills.py"
TALK = "tests/proof/test_talk.py"
EMITTING = "tests/execution/test_emitting.py"
API = "mailbox_app/api/v1"
# Streams: each in any order, one by one, and in trouble.
STREAMS = "tests/proof/test_streaming.py"
STREAM, TROUBLE = "tests/streams/test_stream.py", "tests/streams/test_trouble.py"
TEXT, LIVE_TEXT = "tests/streams/test_text.py", "tests/streams/test_live_text.py"
TWO_WAYS = "tests/streams/test_text_and_events.py"


@dataclass(frozen=True)
class Mutation:
    """Texts to replace in one file, or the name of a unique index that the test database is to lack."""

    name: str
    path: str = ""
    changes: tuple[tuple[str, str], ...] = ()
    index: str = ""
    noticed_by: tuple[str, ...] = ()


def _index(name: str, *noticed_by: str) -> Mutation:
    return Mutation(f"the index {name}", index=name, noticed_by=(BROKEN_ROWS, *noticed_by))


MUTATIONS = (
    Mutation(
        "the right of a token whose stream is open",
        f"{API}/stream_rights.py",
        (("return (right.token_id, right.scope) in usable", "return True"),),
        noticed_by=("tests/streams/test_rights.py",),
    ),
    Mutation(
        "the end of a client that does not read",
        f"{API}/stream_hub.py",
        (
            (
                "closed = stream_cut.close({client.ends for client in stuck if client.ends is not None})",
                "closed = set()",
            ),
        ),
        noticed_by=("tests/streams/test_cut.py",),
    ),
    Mutation(
        "the client that leaves while it is sent to",
        f"{API}/stream.py",
        (("            self._task.add_done_callback(leave)\n", "            pass\n"),),
        noticed_by=("tests/streams/test_cut.py",),
    ),
    Mutation(
        "the place of live text among the events",
        f"{API}/stream.py",
        ((" or text.after > self.cursor", ""),),
        noticed_by=(TWO_WAYS,),
    ),
    Mutation(
        "the live text of the next turn",
        f"{API}/stream_text.py",
        (("if (fence, turn) > (self.fence, self.turn):", "if fence > self.fence:"),),
        noticed_by=(TWO_WAYS,),
    ),
    Mutation(
        "the end of what is kept of live text",
        f"{EXECUTION}/activation.py",
        (("        self.context.fall_silent()\n", ""),),
        noticed_by=("tests/execution/test_live.py",),
    ),
    Mutation(
        "the token of a claim",
        f"{OPERATIONS}/ownership.py",
        (
            ("AND dispatch.claim_token = %(token)s", "AND %(token)s::uuid IS NOT NULL"),
            ("AND dispatch.claim_token = wanted.token", ""),
        ),
        noticed_by=("tests/operations/test_fencing.py", "tests/races/test_lock_then_look.py", MACHINE),
    ),
    Mutation(
        "the turn of a claim",
        f"{OPERATIONS}/settle.py",
        ((" or dispatch.run.turn != claim.turn", ""),),
        noticed_by=("tests/operations/test_turns.py", MACHINE),
    ),
    Mutation(
        "SKIP LOCKED of a claim",
        f"{OPERATIONS}/candidates.py",
        ((" SKIP LOCKED", ""),),
        noticed_by=("tests/races/test_claim.py", "tests/operations/test_claim_isolation.py"),
    ),
    Mutation(
        "SKIP LOCKED of a renewal",
        f"{OPERATIONS}/claim.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_leases.py",),
    ),
    Mutation(
        "SKIP LOCKED of a group",
        f"{MODELS}/thread.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_claim.py", "tests/operations/test_complete_some.py"),
    ),
    Mutation(
        "SKIP LOCKED of a pass",
        f"{MODELS}/thread.py",
        (("skip_locked=True", "skip_locked=False"),),
        noticed_by=("tests/races/test_leases.py", "tests/races/test_turns_waits_deliveries.py"),
    ),
    Mutation(
        "SKIP LOCKED of a stamp",
        f"{OPERATIONS}/missing.py",
        (("NO KEY UPDATE SKIP LOCKED", "NO KEY UPDATE"),),
        noticed_by=("tests/races/test_missing.py",),
    ),
    Mutation(
        "the lock of the fence",
        f"{MODELS}/thread.py",
        (("ORDER BY id FOR NO KEY UPDATE", "ORDER BY id"),),
        noticed_by=("tests/races/test_lock_then_look.py", "tests/races/test_claim.py"),
    ),
    Mutation(
        "the rewrite of the flag",
        f"{MODELS}/thread.py",
        (("        thread.judge()\n", "        pass\n"),),
        noticed_by=("tests/operations/test_settle.py", "tests/races/test_lock_then_look.py", MACHINE),
    ),
    Mutation(
        "the flag of a submission",
        f"{OPERATIONS}/accept.py",
        (("thread.consider(queued.dispatch)", "thread._is_judged = True"),),
        noticed_by=("tests/operations/test_submit.py", "tests/races/test_claim.py", MACHINE),
    ),
    Mutation(
        "lock before look",
        f"{OPERATIONS}/settle.py",
        (
            (
                "    with Thread.objects.fence(claim.thread_id) as thread:\n"
                "        found = find_endings([claim]).get(claim.token)\n",
                "    found = find_endings([claim]).get(claim.token)\n"
                "    with Thread.objects.fence(claim.thread_id) as thread:\n",
            ),
        ),
        noticed_by=("tests/races/test_lock_then_look.py", "tests/races/test_leases.py"),
    ),
    Mutation(
        "the second look of a sweep",
        f"{OPERATIONS}/recover.py",
        (("Dispatch.objects.filter(thread=thread).expired()", "Dispatch.objects.filter(thread=thread).claimed()"),),
        noticed_by=("tests/races/test_leases.py", "tests/operations/test_recover.py"),
    ),
    Mutation(
        "the permit that comes back",
        f"{MODELS}/thread.py",
        (("            self._give_back(held)\n", "            pass\n"),),
        noticed_by=("tests/operations/test_permits.py",),
    ),
    Mutation(
        "SKIP LOCKED of a permit",
        f"{OPERATIONS}/permits.py",
        (("        FOR NO KEY UPDATE SKIP LOCKED\n    ) AS permit", "    ) AS permit"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the lock of a bucket",
        f"{OPERATIONS}/permits.py",
        (('.order_by("pk").select_for_update(no_key=True)', '.order_by("pk")'),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the look after a block",
        f"{OPERATIONS}/claim.py",
        (("after_commit(permits.unblock, exhausted)", "pass"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    Mutation(
        "the gate of a limit",
        f"{OPERATIONS}/limits.py",
        (("        gate.close()\n", "        pass\n"),),
        noticed_by=("tests/races/test_limits.py",),
    ),
    # What only a connection that is cut, or a process that is ended, asks for.
    Mutation(
        "the hand-back of a claim that was not answered",
        f"{EXECUTION}/executor.py",
        (("        settle.hand_back(tokens=tokens)\n        raise\n", "        raise\n"),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the look of a settle for its own end",
        f"{OPERATIONS}/settle.py",
        (("if dispatch is None and has_ended(", "if False and has_ended("),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the look for a record that was not answered",
        f"{EXECUTION}/journal.py",
        (("self._records, self._must_look = None, True", "pass"),),
        noticed_by=(KILLS,),
    ),
    Mutation(
        "the count of lost leases",
        f"{OPERATIONS}/recover.py",
        (("            dispatch.lost_count += 1\n", ""),),
        noticed_by=("tests/operations/test_recover.py", KILLS),
    ),
    Mutation(
        "the look of a wait for answers that came first",
        f"{OPERATIONS}/settle.py",
        (("is_answered = not unanswered", "is_answered = False"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "the look of an answer under the fence",
        f"{OPERATIONS}/decide.py",
        (
            (
                "        asked = _find(found_id, ticket_id)\n        if asked.status == TicketStatus.OPEN:\n",
                "        if asked.status == TicketStatus.OPEN:\n",
            ),
        ),
        noticed_by=("tests/races/test_decide.py",),
    ),
    Mutation(
        "the look for other questions",
        f"{OPERATIONS}/tickets.py",
        (("if any(ticket.pk not in now_answered for ticket in", "if False and any(ticket.pk for ticket in"),),
        noticed_by=("tests/operations/test_decide.py", "tests/execution/test_ask.py"),
    ),
    Mutation(
        "the second look of a tick for what has lapsed",
        f"{OPERATIONS}/tick.py",
        (("Ticket.objects.overdue().filter(run__thread=thread)", "Ticket.objects.filter(run__thread=thread)"),),
        noticed_by=("tests/races/test_decide.py", "tests/operations/test_decide.py"),
    ),
    Mutation(
        "the end of an answer's time",
        f"{OPERATIONS}/decide.py",
        (("if asked.expires_at is not None and asked.expires_at <= thread.locked_at:", "if False:"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "the closing of what a run has asked",
        f"{OPERATIONS}/ending.py",
        (("Ticket.objects.of_run(run.pk).open().move(CLOSE)", "pass"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    # What only somebody who talks notices.
    Mutation(
        "the guard of a message",
        f"{OPERATIONS}/zone.py",
        (("if revision not in (None, message.revision):", "if False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the guard of an order",
        f"{OPERATIONS}/zone.py",
        (("if pending_revision not in (None, thread.pending_revision):", "if False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the message that is read alone",
        f"{OPERATIONS}/freeze.py",
        (("        if is_alone and taken:\n            break\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_freeze.py"),
    ),
    Mutation(
        "the barrier that ends a batch",
        f"{OPERATIONS}/freeze.py",
        (("if is_alone or message.barrier:", "if is_alone:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the head behind a barrier",
        f"{OPERATIONS}/heads.py",
        (("if any(message.barrier for message in unread.get(thread.pk, ()))", "if False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the end of a run that has nothing left to read",
        f"{OPERATIONS}/pending.py",
        (("and not _is_wanted(thread, run, message):", "and False:"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the resume that has nothing left to bring",
        f"{OPERATIONS}/pending.py",
        (("        if withdrawn is not None:\n", "        if False:\n"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "the runs that move with an order",
        f"{OPERATIONS}/pending.py",
        (("run_ids = _move_runs(thread, rows, last)", "run_ids = []"),),
        noticed_by=(CONVERSATION, "tests/operations/test_pending.py"),
    ),
    Mutation(
        "whom a message may join",
        f"{OPERATIONS}/joining.py",
        ((" or not _is_alike(last.run, spec)", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "what others have said to a run that is cancelled",
        f"{OPERATIONS}/joining.py",
        (("if message.run_id == run.pk and str(message.pk) not in said[by]", "if False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the look of a wait for input that was there",
        f"{OPERATIONS}/settle.py",
        (("wait.reason == waits.USER_INPUT and feed.gather(thread, run)", "False"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the end of the run whose messages a wait has taken",
        f"{OPERATIONS}/feed.py",
        (("    joined = _unstarted(thread, run)\n", "    joined = None\n"),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the one resume of input that comes twice",
        f"{OPERATIONS}/feed.py",
        (
            (
                "    if Dispatch.objects.of_run(run.pk).queued().exists():\n        return",
                "    if False:\n        return",
            ),
        ),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the retraction of what was for a run that ended",
        f"{OPERATIONS}/ending.py",
        (("    _retract_targeted(thread, run, unread)\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_messages.py"),
    ),
    Mutation(
        "the readers of what an interrupt has stopped",
        f"{OPERATIONS}/accept.py",
        (("    interrupt.pass_on(thread, stopped.unread, queued)\n", ""),),
        noticed_by=(CONVERSATION, "tests/operations/test_interrupt.py"),
    ),
    # What is said, who reads it, and who is told.
    Mutation(
        "whose message it is",
        f"{OPERATIONS}/freeze.py",
        (("    if message.run_id not in (None, run.pk):\n        return False\n", ""),),
        noticed_by=("tests/operations/test_freeze.py", "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the barrier behind what was skipped",
        f"{OPERATIONS}/freeze.py",
        (("if message.barrier and (has_skipped or _is_behind_another(message, run)):", "if False:"),),
        noticed_by=("tests/operations/test_freeze.py", "tests/operations/test_barriers.py"),
    ),
    Mutation(
        "the end of what was for one run alone",
        f"{OPERATIONS}/ending.py",
        (('            thread.move(message, RETRACT, retract_reason="target_ended")\n', "            continue\n"),),
        noticed_by=("tests/operations/test_turns.py", "tests/operations/test_messages.py", TALK),
    ),
    Mutation(
        "the run for what is left unread",
        f"{OPERATIONS}/ending.py",
        (
            (
                "    enqueue.unread(thread=thread, ended=run, dispatch=dispatch, messages=unread)\n",
                "    pass\n",
            ),
        ),
        noticed_by=("tests/operations/test_turns.py", "tests/races/test_turns_waits_deliveries.py", TALK),
    ),
    Mutation(
        "the place of what is left unread",
        f"{OPERATIONS}/enqueue.py",
        (
            (
                "_created(thread, spec, left[0].position, _requeued(ended))",
                "_created(thread, spec, thread.take_order(), _requeued(ended))",
            ),
        ),
        noticed_by=("tests/operations/test_turns.py", "tests/operations/test_interrupt.py"),
    ),
    Mutation(
        "the new reader of what an interrupt stopped",
        f"{OPERATIONS}/interrupt.py",
        (("        thread.change(message, run_id=queued.run.pk)\n", "        pass\n"),),
        noticed_by=("tests/operations/test_interrupt.py", "tests/races/test_messages.py", TALK),
    ),
    Mutation(
        "the guard of a revision",
        f"{OPERATIONS}/zone.py",
        (("if revision not in (None, message.revision):", "if False:"),),
        noticed_by=("tests/operations/test_pending.py", "tests/races/test_pending.py"),
    ),
    Mutation(
        "the first answer",
        f"{OPERATIONS}/decide.py",
        (("    if decision_id != asked.decision_id:\n", "    if False:\n"),),
        noticed_by=("tests/operations/test_decide.py", "tests/races/test_decide.py"),
    ),
    Mutation(
        "whose thread it is",
        "mailbox_app/api/v1/finding.py",
        ((" AND thread.scope = %(scope)s", ""),),
        noticed_by=("tests/api/test_scopes.py", "tests/api/test_authentication.py"),
    ),
    Mutation(
        "the news of a child's end",
        f"{MODELS}/thread.py",
        (('if move.noun == "run" and move.target == RunStatus.DONE:', "if False:"),),
        noticed_by=("tests/operations/test_children.py", "tests/execution/test_children.py"),
    ),
    Mutation(
        "the look of a wait for children that ended first",
        f"{OPERATIONS}/settle.py",
        (("        ended_children = lineage.outcomes(wait.child_run_ids)", "        ended_children = None"),),
        noticed_by=("tests/operations/test_children.py", "tests/races/test_children.py"),
    ),
    Mutation(
        "the other children a parent waits for",
        f"{OPERATIONS}/lineage.py",
        (("if Run.objects.filter(pk__in=list(run_ids)).not_done().exists():", "if False:"),),
        noticed_by=("tests/operations/test_children.py", "tests/races/test_children.py"),
    ),
    Mutation(
        "the children of who is cancelled",
        f"{OPERATIONS}/ending.py",
        (("    lineage.cancel(thread, dispatch.run)\n", ""), ("    lineage.cancel(thread, run)\n", "")),
        noticed_by=("tests/operations/test_children.py", "tests/races/test_children.py"),
    ),
    Mutation(
        "the spawning of who is to stop",
        f"{OPERATIONS}/checkpoint.py",
        (
            (
                """            raise Cancelled(f"run {claim.run_id} was cancelled")
        facts = child""",
                """            pass
        facts = child""",
            ),
        ),
        noticed_by=("tests/races/test_children.py", "tests/execution/test_children.py"),
    ),
    Mutation(
        "the barrier in front of what would go first",
        f"{MODELS}/ready.py",
        (("elif self.due_at is None and self.wakes_at is None and not self.blocked_reason:", "elif is_due:"),),
        noticed_by=("tests/operations/test_barriers.py", CONVERSATION),
    ),
    Mutation(
        "Last-Event-ID of a stream",
        f"{API}/stream.py",
        (("if sent is not None:", 'if sent == "":'),),
        noticed_by=(
            f"{STREAM}::test_a_client_that_comes_back_gets_what_it_has_not_had_whatever_its_url_says",
            STREAMS,
        ),
    ),
    Mutation(
        "the end of a stream's cursor",
        f"{API}/stream.py",
        (("self.cursor = min(cursor, self._head)", "self.cursor = cursor"),),
        noticed_by=(
            f"{STREAM}::test_who_asks_for_what_is_past_the_end_gets_what_comes_next",
            STREAMS,
        ),
    ),
    Mutation(
        "the cursor itself, which was told (of a feed)",
        f"{API}/stream_feed.py",
        (("lambda told: told.cursor > cursor", "lambda told: told.cursor >= cursor"),),
        noticed_by=(
            f"{STREAM}::test_a_stream_over_many_events_that_are_being_recorded_has_no_gap_and_no_repeat",
            STREAMS,
        ),
    ),
    Mutation(
        "the cursor itself, which was told (of a run's page)",
        f"{API}/stream_rows.py",
        (("run_id = %(run)s AND cursor > %(cursor)s", "run_id = %(run)s AND cursor >= %(cursor)s"),),
        noticed_by=(
            f"{STREAM}::test_a_stream_over_many_events_that_are_being_recorded_has_no_gap_and_no_repeat",
            STREAMS,
        ),
    ),
    Mutation(
        "the head of a page that is full",
        f"{API}/stream_rows.py",
        (("        if one.has_more:\n            one.head = one.told[-1].cursor\n", "        pass\n"),),
        noticed_by=(
            f"{STREAM}::test_a_stream_over_many_events_that_are_being_recorded_has_no_gap_and_no_repeat",
            STREAMS,
        ),
    ),
    Mutation(
        "the floor of a feed",
        f"{API}/stream_feed.py",
        (("        self.floor = told.cursor\n", ""),),
        noticed_by=(
            f"{TROUBLE}::test_a_client_behind_what_is_kept_reads_on_from_the_table",
            STREAMS,
        ),
    ),
    Mutation(
        "the floor of a feed whose events were pruned unread",
        f"{API}/stream_feed.py",
        (("if found.pruned > self.head:", "if False:"),),
        noticed_by=(f"{TROUBLE}::test_events_pruned_before_they_were_sent_end_the_stream_with_an_error",),
    ),
    Mutation(
        "the refusal of a cursor past retention",
        f"{API}/stream.py",
        (("if 0 < cursor < pruned:", "if False:"),),
        noticed_by=(
            "tests/api/test_stream_rules.py",
            STREAMS,
        ),
    ),
    Mutation(
        "the end of a stream at any end of its run",
        f"{API}/stream.py",
        (("if one.kind in TERMINAL_KINDS:", "if one.kind == Kind.RUN_FINISHED:"),),
        noticed_by=(
            f"{STREAM}::test_however_a_run_ends_so_does_its_stream",
            STREAMS,
        ),
    ),
    Mutation(
        "what came while a client was taking the last of it",
        f"{API}/stream.py",
        ((" or self.cursor < feed.head", ""),),
        noticed_by=(f"{TROUBLE}::test_a_client_that_is_slow_when_its_thread_is_deleted_is_told_of_that_first",),
    ),
    Mutation(
        "that a run waits when its submission is repeated",
        f"{API}/stream.py",
        (("run is not None and run.status == RunStatus.WAITING", "False"),),
        noticed_by=(
            f"{STREAM}::test_a_submission_that_is_repeated_while_its_run_waits_ends_at_once_whatever_was_told",
        ),
    ),
    Mutation(
        "the live text of an attempt that is over",
        f"{API}/stream_text.py",
        (("        if (fence, turn) < (self.fence, self.turn):\n            return Came.OLD\n", ""),),
        noticed_by=(
            TEXT,
            f"{STREAM}::test_what_an_attempt_says_that_is_over_is_not_heard",
        ),
    ),
    Mutation(
        "the message that closes live text",
        f"{API}/stream_feed.py",
        (("self.text.close(one.cursor)", "pass"),),
        noticed_by=(f"{TROUBLE}::test_a_message_closes_what_was_said_live_also_when_nobody_was_told",),
    ),
    Mutation(
        "a message that was given to the run closes no live text",
        f"{API}/stream_rows.py",
        (("producer == run_id and ", ""),),
        noticed_by=(f"{TWO_WAYS}::test_a_message_that_a_run_reads_closes_nothing_of_what_it_says_whatever_its_role",),
    ),
    Mutation(
        "how far a piece of live text is closed",
        f"{API}/stream_text.py",
        (("if closed > self._closed:", "if False:"),),
        noticed_by=(TEXT,),
    ),
    Mutation(
        "the look when notices arrive again",
        f"{API}/stream_hub.py",
        (("        self._want(*self._feeds.values())\n", "        pass\n"),),
        noticed_by=(f"{TROUBLE}::test_what_was_not_told_while_redis_was_away_is_looked_for_once_it_is_back",),
    ),
    Mutation(
        "the look for what nobody was told of",
        f"{API}/stream_hub.py",
        (("        self._want(*(feed for feed in feeds if heads.get(feed.thread_id) != feed.head))\n", ""),),
        noticed_by=(
            f"{TROUBLE}::test_a_notice_that_is_lost_is_made_up_for",
            STREAMS,
        ),
    ),
    Mutation(
        "the runs nobody follows any more",
        f"{API}/stream_hub.py",
        (("            self._ear = Ear(self)\n", ""),),
        noticed_by=(f"{TROUBLE}::test_whoever_listens_again_hears_no_run_that_was_left",),
    ),
    Mutation(
        "live text that Redis did not take is sent again",
        "mailbox_app/saying.py",
        (("        if not answers:\n            self._take_back()\n", ""),),
        noticed_by=(TEXT,),
    ),
    Mutation(
        "which event a lost answer leaves in doubt",
        f"{EXECUTION}/journal.py",
        (("                saying.doubt(self._claim.thread_id)\n", ""),),
        noticed_by=(LIVE_TEXT,),
    ),
    Mutation(
        "what a message holds that stands before the feed began",
        f"{API}/stream_hub.py",
        (("        await self._learn(feed, run_id, [", "        _ = (["),),
        noticed_by=(LIVE_TEXT,),
    ),
    Mutation(
        "a deleted thread's last events",
        f"{API}/stream_feed.py",
        (("found.is_gone and not found.has_more", "found.is_gone"),),
        noticed_by=(f"{STREAM}::test_who_is_far_behind_a_thread_that_is_deleted_is_told_all_of_it_first",),
    ),
    Mutation(
        "each turn's events are wanted for themselves",
        f"{EXECUTION}/emitting.py",
        (("setdefault((claim.token, claim.turn), ", "setdefault((claim.token, 1), "),),
        noticed_by=(f"{EMITTING}::test_an_event_of_a_later_turn_waits_no_longer_than_one_of_the_first",),
    ),
    Mutation(
        "what was emitted goes before what is done next",
        f"{OPERATIONS}/ownership.py",
        (("        claim.emitted.write(thread, dispatch)\n        yield", "        yield"),),
        noticed_by=(EMITTING,),
    ),
    Mutation(
        "what was emitted goes before the end",
        f"{OPERATIONS}/settle.py",
        (("    run = dispatch.run\n    claim.emitted.write(thread, dispatch)\n", "    run = dispatch.run\n"),),
        noticed_by=(EMITTING,),
    ),
    Mutation(
        "the look for emitted events whose commit was not answered",
        f"{OPERATIONS}/emitted.py",
        (("            self._forget(_written(run, doubtful))\n", "            pass\n"),),
        noticed_by=(EMITTING,),
    ),
    Mutation(
        "a batch of emitted events that is full",
        f"{EXECUTION}/context.py",
        (("        return emitted.is_full\n", "        return False\n"),),
        noticed_by=(EMITTING,),
    ),
    Mutation(
        "the pace of who records emitted events",
        f"{EXECUTION}/emitting.py",
        (("        if (left := _left(claim)) > 0:", "        if (left := _left(claim)) > 9_999:"),),
        noticed_by=(EMITTING,),
    ),
    Mutation(
        "emitted events of a thread that is held",
        f"{EXECUTION}/emitting.py",
        (("            self.want(claim, _HELD_SECONDS)\n", "            pass\n"),),
        noticed_by=(EMITTING,),
    ),
    _index("dispatch_one_claimed_per_thread"),
    _index("dispatch_one_live_per_run"),
    _index("run_one_open_per_thread"),
    _index(
        "run_dedupe_key_unique_while_not_done", "tests/operations/test_submit.py", "tests/races/test_unique_keys.py"
    ),
    _index("run_client_id_unique_in_scope"),
    _index("message_client_id_unique_in_scope", "tests/operations/test_submit.py", "tests/races/test_unique_keys.py"),
    _index("message_seq_unique_in_thread"),
    _index("event_cursor_unique_in_thread"),
    _index("event_key_unique_in_thread"),
    _index("journal_entry_once_per_use", "tests/races/test_lock_then_look.py"),
    _index("ticket_once_per_run"),
    _index("outbox_order_unique_per_pair"),
    _index("thread_key_unique_in_scope", "tests/races/test_many_submits.py"),
    _index("idempotency_key_unique_in_scope", "tests/api/test_idempotency.py"),
    _index("pause_once"),
    _index("limit_once"),
    _index("permit_once_per_dispatch"),
    _index("agent_version_once"),
    _index("agent_registration_once_per_worker"),
)
