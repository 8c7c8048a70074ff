import assert from 'node:assert/strict';
import { tmpdir } from 'node:os';
import { test } from 'node:test';
import { loadBinding, native } from '../../../src/native/binding.ts';
import { directoryFacts, nativeFacts } from '../../../src/native/facts.ts';
import { requireAddon } from '../../support/addon.ts';
import { memoryFolder } from '../../support/memory-folder.ts';

const skip = requireAddon();

test('LUNETTE_NATIVE=0 keeps the addon out, and says so', () => {
  const result = loadBinding({ LUNETTE_NATIVE: '0' });
  assert.equal(result.binding, undefined);
  assert.equal(result.reason, 'LUNETTE_NATIVE=0');
});

test('the addon is found from the package root and says where it was', { skip }, () => {
  const result = loadBinding({});
  assert.equal(result.binding, native);
  assert.match(result.path ?? '', /native\/build\/Release\/lunette\.node$/);
  assert.deepEqual([nativeFacts().addon, nativeFacts().reason], [result.path, undefined]);
  assert.equal(nativeFacts().ioThreads, 4);
});

test('facts of a directory name its file system and how it is read', { skip }, () => {
  const facts = directoryFacts(tmpdir());
  assert.ok(facts !== undefined);
  assert.equal(facts.ofdLocks, true);
  if (facts.fileSystem === 'ext4') {
    assert.deepEqual([facts.reads, facts.noWaitWrites, facts.seekData], ['cached', false, true]);
  }
  if (memoryFolder !== undefined) {
    assert.deepEqual(
      [directoryFacts(memoryFolder)?.fileSystem, directoryFacts(memoryFolder)?.reads],
      ['tmpfs', 'memory'],
    );
  }
});

test('a directory that is not there is an error with the name of its errno', { skip }, () => {
  assert.throws(() => directoryFacts('/nonexistent'), { code: 'ENOENT', syscall: 'open', errno: -2 });
});
