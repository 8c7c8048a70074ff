import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ERROR_CODES, fromSystemError, ImageError, LunetteError } from '../../../formats/core/errors.ts';
import { EXIT_TABLE, reportError } from '../../../src/cli/exit.ts';

test('every error code has a row with an exit status, and no row is for another code', () => {
  assert.deepEqual(Object.keys(EXIT_TABLE).sort(), Object.keys(ERROR_CODES).sort());
  for (const { status } of Object.values(EXIT_TABLE)) assert.ok(status === 1 || status === 2);
});

test('only a wrong command line has status 2', () => {
  const withStatus2 = Object.entries(EXIT_TABLE).filter(([, { status }]) => status === 2);
  assert.deepEqual(
    withStatus2.map(([code]) => code),
    ['USAGE'],
  );
});

test('an error is path, message and code on one line', () => {
  const error = new ImageError('BAD_HEADER', 'qcow2 header: cluster_bits 40 is outside 9..21', { path: 'disk.qcow2' });
  assert.equal(reportError(error).text, 'disk.qcow2: qcow2 header: cluster_bits 40 is outside 9..21 (BAD_HEADER)');
});

test('the help of the error goes before that of its code', () => {
  assert.match(reportError(new LunetteError('LOCKED', 'is in use')).help ?? '', /--force-share/);
  assert.equal(reportError(new LunetteError('LOCKED', 'is in use', { help: 'Wait.' })).help, 'Wait.');
  assert.equal(reportError(new LunetteError('IO', 'read failed')).help, undefined);
});

test('the path is said once, and what Node adds around an errno is left out', () => {
  const node = Object.assign(new Error("ENOENT: no such file or directory, stat 'a.qcow2'"), { code: 'ENOENT' });
  const error = fromSystemError(node, 'cannot open a.qcow2', { path: 'a.qcow2' });
  assert.equal(reportError(error).text, 'a.qcow2: cannot open: no such file or directory (NOT_FOUND)');
  assert.equal(
    reportError(new ImageError('LOCKED', 'a.qcow2 is in use: held by qemu (pid 7)', { path: 'a.qcow2' })).text,
    'a.qcow2: is in use: held by qemu (pid 7) (LOCKED)',
  );
});

test('an error of Node that nobody has translated still has a path and a code', () => {
  const error = Object.assign(new Error("EACCES: permission denied, open '/x'"), { code: 'EACCES', path: '/x' });
  assert.deepEqual(reportError(error), { status: 1, text: '/x: permission denied (ACCESS)', help: undefined });
});

test('what is no error of ours is a bug, and says so', () => {
  const report = reportError(new TypeError('x is undefined'));
  assert.equal(report.text, 'x is undefined (INTERNAL)');
  assert.equal(report.status, 1);
  assert.match(report.help ?? '', /--debug/);
});

test('control characters from inside an image reach no terminal and break no line', () => {
  const { text } = reportError(
    new ImageError('NOT_FOUND', 'no backing file \x1b]0;x\x07\nlunette: fake', { path: 'a' }),
  );
  assert.equal(text, 'a: no backing file \\x1b]0;x\\x07 lunette: fake (NOT_FOUND)');
});
