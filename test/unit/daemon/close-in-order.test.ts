import assert from 'node:assert/strict';
import { test } from 'node:test';
import { closeInOrder } from '../../../src/daemon/close-in-order.ts';

test('every step is taken in its turn, also after one that failed, and the first failure is told', async () => {
  const taken: string[] = [];
  const step = (name: string, error?: Error) => async (): Promise<void> => {
    await new Promise((resolve) => setImmediate(resolve));
    taken.push(name);
    if (error !== undefined) throw error;
  };
  const closed = closeInOrder([
    step('portal', new Error('portal gone')),
    () => undefined,
    () => {
      throw new Error('later');
    },
    step('image'),
  ]);
  await assert.rejects(closed, /portal gone/);
  assert.deepEqual(taken, ['portal', 'image']);
});
