import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { parseConfig } from '../../../src/daemon/config.ts';
import { compareConfigs } from '../../../src/daemon/config-changes.ts';
import { ConfiguredServers } from '../../../src/daemon/configured-servers.ts';
import { ImageServer } from '../../../src/daemon/image-server.ts';
import { SILENT } from '../../../src/daemon/log.ts';
import { NbdImageServer } from '../../../src/daemon/nbd-image-server.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { createHost } from '../../../src/open/host.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

test('an image that cannot be added to a server is closed, and its name is free again', async (t) => {
  const folder = await temporaryDirectory(t);
  const image = join(folder, 'disk');
  await writeFile(image, Buffer.alloc(65536));
  const host = createHost();
  t.after(() => host.close());
  const request = { image, format: 'raw' };
  const nbd = await NbdImageServer.start({ exports: [], host, listen: { path: join(folder, 's') } });
  t.after(() => nbd.close());
  await assert.rejects(nbd.add({ ...request, bitmaps: ['none'] }));
  assert.equal((await nbd.add(request)).name, 'disk');
  await nbd.remove('disk');

  const iscsi = await ImageServer.start({ exports: [], host, listen: { host: '127.0.0.1', port: 0 } });
  t.after(() => iscsi.close());
  const other = join(folder, 'other');
  await writeFile(other, Buffer.alloc(65536));
  const { target } = await iscsi.add({ ...request, name: 'one' });
  // The name that the other one has in the end.
  await assert.rejects(iscsi.add({ ...request, image: other, name: target }), { code: 'EXISTS' });
  assert.equal(iscsi.images.length, 1);
  await iscsi.remove(target);
  assert.equal((await iscsi.add({ ...request, image: other, name: target })).target, target);
});

test('images that do not open hold up none of the others, and all are in the order of the configuration', async (t) => {
  const folder = await temporaryDirectory(t);
  const slow = [0, 3, 5];
  const names = Array.from({ length: 12 }, (_, i) => `disk${i}`);
  for (const [i, name] of names.entries()) if (i !== 7) await writeFile(join(folder, name), Buffer.alloc(65536));
  const entry = (name: string, i: number): string =>
    `[[export]]\nname = "${name}"\nimage = "${join(folder, name)}"\nformat = "raw"\ntransport = "${i % 2 === 0 ? 'nbd' : 'iscsi'}"\n`;
  const twice = `[[export]]\nname = "again"\nimage = "${join(folder, 'disk1')}"\nformat = "raw"\ntransport = "nbd"\n`;
  const text = `[tcmu]\nenable = false\n[nbd]\nsocket = "${join(folder, 's')}"\n[iscsi]\nlisten = "127.0.0.1:0"\n`;
  const config = parseConfig(text + names.map(entry).join('') + twice, 'config');
  const host = createHost();
  const openImage = host.open.bind(host);
  let [atOnce, most] = [0, 0];
  let go: () => void = () => undefined;
  const answered = new Promise<void>((resolve) => {
    go = resolve;
  });
  host.open = async (...args) => {
    most = Math.max(most, ++atOnce);
    try {
      if (slow.some((i) => args[0] === join(folder, `disk${i}`))) await answered;
      return await openImage(...args);
    } finally {
      atOnce--;
    }
  };
  const ready: string[] = [];
  const info = (_: object, line: string): void => {
    const [, name] = /^(\w+): ready/.exec(line) ?? [];
    if (name !== undefined) ready.push(name);
    // All that can be served is, while the others are waited for.
    if (ready.length === 8) go();
  };
  const starting = ConfiguredServers.start(config, host, { ...SILENT, info });
  const servers = await starting;
  t.after(async () => {
    await servers.close();
    await host.close();
  });
  assert.ok(most > 3 && most <= 8, `${most} at once`);
  assert.deepEqual(
    ready.slice(-slow.length).sort(),
    slow.map((i) => `disk${i}`),
  );
  assert.deepEqual(
    servers.served.map(({ entry: { name } }) => name),
    names.filter((_, i) => i !== 7),
  );
  assert.match(
    servers.failed.map(({ entry: { name }, reason }) => `${name}: ${reason}`).join('\n'),
    /^again: .*\ndisk7: .*disk7|^disk7: .*disk7.*\nagain: /,
  );
});

test('an export that ends while another is being opened by a reload does not take its server away', async (t) => {
  const folder = await temporaryDirectory(t);
  const names = ['one', 'two'];
  for (const name of names) {
    await writeFile(join(folder, name), Buffer.alloc(65536));
  }
  const entries = names.map(
    (name) => `[[export]]\nname = "${name}"\nimage = "${join(folder, name)}"\nformat = "raw"\ntransport = "nbd"\n`,
  );
  const head = `[tcmu]\nenable = false\n[nbd]\nsocket = "${join(folder, 's')}"\n`;
  const before = parseConfig(`${head}${entries[0]}`, 'before');
  const after = parseConfig(head + entries.join(''), 'after');
  const host = createHost();
  const servers = await ConfiguredServers.start(before, host, SILENT);
  t.after(async () => {
    await servers.close();
    await host.close();
  });

  const openImage = host.open.bind(host);
  let stopped: Promise<boolean> | undefined;
  host.open = async (...args) => {
    stopped = servers.stop('one');
    await new Promise((resolve) => setTimeout(resolve, 100));
    return openImage(...args);
  };
  await servers.apply(after, compareConfigs(before, after));
  assert.equal(await stopped, true);
  assert.deepEqual(
    servers.served.map(({ entry }) => entry.name),
    ['two'],
  );
  const image = await NbdImage.open(servers.served[0]?.url ?? '', { reconnectMs: 0 });
  assert.equal(image.size, 65536);
  await image.close();
});
