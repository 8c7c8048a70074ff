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
