import assert from 'node:assert/strict';
import { test } from 'node:test';
import { LeaseBook } from '../../../../formats/image/lease.ts';
import { randomFor } from '../../../support/random.ts';

const tick = () => new Promise((resolve) => setImmediate(resolve));

test('quiesced waits for readers that pinned before it, not for later ones', async () => {
  const leases = new LeaseBook();
  const early = leases.pin();
  let done = false;
  const quiet = leases.quiesced().then(() => {
    done = true;
  });
  const late = leases.pin();
  await tick();
  assert.equal(done, false);
  leases.unpin(early);
  await quiet;
  assert.equal(leases.idle, false);
  leases.unpin(late);
  assert.equal(leases.idle, true);
  await leases.quiesced();
});

test('with many generations each waiter sees exactly its own readers gone', async (t) => {
  const random = randomFor(t);
  const leases = new LeaseBook();
  const pinned = new Map<number, { ticket: number }>();
  let next = 0;
  const waiting: { before: Set<number>; done: boolean }[] = [];
  for (let step = 0; step < 2000; step++) {
    const action = random.below(5);
    if (action < 2) pinned.set(next++, { ticket: leases.pin() });
    else if (action < 4 && pinned.size > 0) {
      const id = random.pick([...pinned.keys()]);
      leases.unpin((pinned.get(id) as { ticket: number }).ticket);
      pinned.delete(id);
    } else {
      const entry = { before: new Set(pinned.keys()), done: false };
      waiting.push(entry);
      leases.quiesced().then(() => {
        entry.done = true;
      });
    }
    await tick();
    for (const entry of waiting) {
      const busy = [...entry.before].some((id) => pinned.has(id));
      if (entry.done) assert.equal(busy, false, 'released while a reader was there');
      // A waiter may wait for an older generation than its own to drain first, never for a younger one.
      else
        assert.ok(
          [...pinned.keys()].some((id) => id <= Math.max(...entry.before)),
          'kept waiting for nobody',
        );
    }
  }
});
