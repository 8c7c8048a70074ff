import assert from 'node:assert/strict';
import path from 'node:path';
import { test } from 'node:test';
import { errorOfOutput } from '../../../src/qemu/messages.ts';
import { parseBridgeSource } from '../../../src/qemu/source.ts';

test('behind the format everything is the path, whatever is in it', () => {
  const rest = 'a,b="c":{d},driver=raw,,e';
  const source = parseBridgeSource(`qemu:vhdx:${rest}`);
  assert.deepEqual([source.format, source.file, source.filename], ['vhdx', path.resolve(rest), undefined]);
  assert.equal(parseBridgeSource('QEMU:VHD:/x/y.vhd').format, 'vpc');
  assert.equal(parseBridgeSource('qemu:vpc:rbd:pool/image').file, path.resolve('rbd:pool/image'));
});

test('a protocol keeps its name for QEMU, and -f says what is there', () => {
  const rbd = parseBridgeSource('qemu:rbd:pool/image:conf=/etc/c', 'qcow2');
  assert.deepEqual([rbd.format, rbd.file, rbd.filename], ['qcow2', undefined, 'rbd:pool/image:conf=/etc/c']);
  assert.equal(parseBridgeSource('qemu:gluster+unix:///v/i?socket=s').filename, 'gluster+unix:///v/i?socket=s');
  assert.equal(parseBridgeSource('qemu:ssh://u@h/x').format, undefined);
});

test('JSON is given on as it is, when it names a driver', () => {
  const json = '{"driver":"vhdx","file":{"driver":"file","filename":"x"}}';
  assert.deepEqual(parseBridgeSource(`qemu:json:${json}`), {
    text: `qemu:json:${json}`,
    format: 'vhdx',
    file: undefined,
    filename: `json:${json}`,
    readOnly: false,
  });
  for (const bad of ['qemu:json:{', 'qemu:json:[]', 'qemu:json:{"file":"x"}', 'qemu:json:null', 'qemu:json:']) {
    assert.throws(() => parseBridgeSource(bad), { code: 'USAGE', path: bad });
  }
});

test('names that cannot be are refused with what would do', () => {
  for (const bad of [
    'qemu:',
    'qemu:vhdx',
    'qemu:vhdx:',
    'qemu::x',
    'qemu:null-co:x',
    'qemu:file:x',
    'qemu:blkdebug::x',
  ]) {
    assert.throws(() => parseBridgeSource(bad), { code: 'USAGE', path: bad });
  }
  assert.throws(() => parseBridgeSource('qemu:vhdx:x', 'vpc'), { code: 'USAGE', message: /contradicts/ });
  assert.throws(() => parseBridgeSource('qemu:rbd:x', 'nonesuch'), { code: 'USAGE' });
  assert.equal(parseBridgeSource('qemu:vpc:x', 'vhd').format, 'vpc');
});

test('formats that QEMU only reads are read-only from the start', () => {
  assert.equal(parseBridgeSource('qemu:dmg:x').readOnly, true);
  assert.equal(parseBridgeSource('qemu:qed:x').readOnly, false);
});

test('what qemu-nbd says has a code of ours, and is told without the JSON that we made', () => {
  const open = (why: string): string => `qemu-nbd: Failed to blk_new_open 'json:{"driver":"x"}': ${why}\n`;
  const cases: readonly [string, string][] = [
    [open('Failed to get "write" lock\nIs another process using the image [/x]?'), 'LOCKED'],
    [open("Could not open '/x': No such file or directory"), 'NOT_FOUND'],
    [open("Could not open '/x': Permission denied"), 'ACCESS'],
    [open('Invalid password, cannot unlock any keyslot'), 'AUTH'],
    [open('invalid VPC image'), 'BAD_MAGIC'],
    [open("Unknown driver 'x'"), 'UNSUPPORTED'],
    [open('parallels: Image was not closed correctly; cannot be opened read/write'), 'CORRUPT'],
    ['', 'IO'],
  ];
  for (const [said, code] of cases) {
    const error = errorOfOutput(said, 'qemu:x:y');
    assert.deepEqual([error.code, error.path], [code, 'qemu:x:y'], said);
    assert.doesNotMatch(error.message, /blk_new_open|json/);
  }
});
