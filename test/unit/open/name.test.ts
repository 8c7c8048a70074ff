import assert from 'node:assert/strict';
import { test } from 'node:test';
import { formatOfHead } from '../../../src/open/foreign.ts';
import { parseImageName, parseImageSource } from '../../../src/open/name.ts';

test('paths are taken as they are, also with a colon that is no scheme', () => {
  for (const name of ['disk.qcow2', '/a/b', './nbd:x', 'a/b:c', 'my:disk.raw', 'c:x']) {
    assert.deepEqual(parseImageName(name), { kind: 'file', path: name });
  }
});

test('file: in front of a path is a path, and a file URL is decoded', () => {
  assert.equal(parseImageName('file:disk.qcow2').path, 'disk.qcow2');
  assert.equal(parseImageName('file:///a%20b/disk.qcow2').path, '/a b/disk.qcow2');
  assert.equal(parseImageName('file://localhost/a').path, '/a');
});

test('URLs are refused by the name of their scheme, with something to do instead', () => {
  for (const url of ['iscsi://host/d', 'json:{}', 'file://elsewhere/x']) {
    assert.throws(
      () => parseImageName(url),
      (error: { code?: string; path?: string; message?: string }) => error.code === 'UNSUPPORTED' && error.path === url,
    );
  }
  assert.throws(() => parseImageName('ISCSI://host/x'), { message: /^iscsi: images/, help: /qemu-img convert/ });
});

test('files on web servers are images to read, but not where only a file can stand', () => {
  for (const url of ['http://host/d.qcow2', 'HTTPS://host/d.qcow2']) {
    assert.deepEqual(parseImageSource(url), { kind: 'http', path: url });
    assert.throws(() => parseImageName(url), { code: 'UNSUPPORTED', path: url, message: /web server/ });
  }
  const inArchive = { kind: 'http', path: 'http://host/vm.ova', member: 'disk2.vmdk' };
  assert.deepEqual(parseImageSource('http://host/vm.ova#disk2.vmdk'), inArchive);
});

test('NBD addresses are images, but not where only a file can stand', () => {
  for (const url of ['nbd://host/x', 'NBD+unix:///x?socket=s', 'nbds://[::1]/x', 'nbd:host:10809']) {
    assert.deepEqual(parseImageSource(url), { kind: 'nbd', url });
    assert.throws(() => parseImageName(url), { code: 'UNSUPPORTED', path: url });
  }
});

test('what QEMU opens for us is an image, but not where only a file can stand', () => {
  assert.deepEqual(parseImageSource('qemu:vhdx:/d'), { kind: 'qemu', url: 'qemu:vhdx:/d' });
  assert.throws(() => parseImageName('qemu:vhdx:/d'), { code: 'UNSUPPORTED', path: 'qemu:vhdx:/d' });
});

test('a disk in an archive is named behind a #, and other files may have one in their names', () => {
  assert.deepEqual(parseImageName('/a/vm.ova#disk2.vmdk'), { kind: 'file', path: '/a/vm.ova', member: 'disk2.vmdk' });
  assert.deepEqual(parseImageName('vm.OVA'), { kind: 'file', path: 'vm.OVA' });
  assert.deepEqual(parseImageName('disk#1.qcow2'), { kind: 'file', path: 'disk#1.qcow2' });
});

test('an empty name is refused', () => {
  assert.throws(() => parseImageName(''), { code: 'INVALID' });
});

test('other formats are known by their first bytes', () => {
  const vdi = new Uint8Array(512);
  vdi.set([0x7f, 0x10, 0xda, 0xbe], 0x40);
  assert.equal(formatOfHead(vdi), 'vdi');
  assert.equal(formatOfHead(Buffer.from('KDMV....')), 'vmdk');
  assert.equal(formatOfHead(Buffer.from('QFI\xfb', 'latin1')), 'qcow2');
  assert.equal(formatOfHead(Buffer.from('QFI')), undefined);
  assert.equal(formatOfHead(new Uint8Array(4096)), undefined);
});
