import assert from 'node:assert/strict';
import { test } from 'node:test';
import { cannotRun } from '../../support/requires.ts';

test('a test that finds out that it cannot run is skipped with its reason, and fails in CI', (t) => {
  const before = process.env.CI;
  t.after(() => {
    if (before === undefined) delete process.env.CI;
    else process.env.CI = before;
  });
  const reasons: (string | undefined)[] = [];
  const asking = { skip: (reason?: string) => void reasons.push(reason) };
  delete process.env.CI;
  cannotRun(asking, 'no loop device');
  assert.deepEqual(reasons, ['no loop device']);
  process.env.CI = 'true';
  assert.throws(() => cannotRun(asking, 'no loop device'), /no loop device.*CI=true/);
  assert.equal(reasons.length, 1);
});
