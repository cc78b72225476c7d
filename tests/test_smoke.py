import uuid
import pytest
from mailbox_app import catalogue
from mailbox_app.execution import agent
from mailbox_app.execution import runner
from mailbox_app.execution.lease import LeaseKeeper
from mailbox_app.models import *
from mailbox_app.operations import submit, claim, settle

pytestmark = pytest.mark.django_db(transaction=True)

def test_smoke(django_assert_num_queries):
    import time
    from django.db import connection
    from django.test.utils import CaptureQueriesContext
    with CaptureQueriesContext(connection) as c:
        r = submit.run(scope="default", agent="echo", messages=["hello big world"])
    print(len(c), [q["sql"][:150] for q in c.captured_queries])
    t = Thread.objects.get()
    assert t.due_agent == "echo"
    with CaptureQueriesContext(connection) as c:
        got = claim.due(queue="mailbox.default", agents=["echo"], worker="w", tokens=[uuid.uuid4()])
    print(len(c), [q["sql"][:150] for q in c.captured_queries])
    [one] = got.claims
    keeper = LeaseKeeper(lambda tokens: claim.renew(tokens=tokens))
    with CaptureQueriesContext(connection) as c:
        runner.run(one, keeper=keeper, own_process=False)
    print(len(c), [q["sql"][:150] for q in c.captured_queries])
    run = Run.objects.get()
    assert run.status == "done" and run.final_output == "hello big world"
    print(list(Event.objects.values_list("cursor","kind")))
    print(list(Message.objects.values_list("seq","role","content","state")))
    t0=time.time()
    for i in range(100):
        submit.run(scope="default", agent="echo", messages=["hello"])
    print("submit/s", 100/(time.time()-t0))
    t0=time.time(); n=0
    while True:
        got = claim.due(queue="mailbox.default", agents=["echo"], worker="w", tokens=[uuid.uuid4()])
        if not got.claims: break
        runner.run(got.claims[0], keeper=keeper, own_process=False); n+=1
    print("drain/s", n/(time.time()-t0))
