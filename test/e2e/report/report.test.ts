/** Report pages in a real browser: what they show, what they answer, and what names inside of images cannot do. */

import assert from 'node:assert/strict';
import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { MiB } from '../../../formats/core/units.ts';
import { ImageHost } from '../../../formats/open.ts';
import { mapAllocation, renderAllocationPage, renderAllocationSvg } from '../../../src/inspect/index.ts';
import { openPage, startBrowser } from '../../support/browser.ts';
import { cli } from '../../support/cli.ts';
import { create, qemuImg, qemuIo } from '../../support/qemu.ts';
import { requires } from '../../support/requires.ts';
import { type Cleanup, temporaryDirectory, temporaryFile } from '../../support/temporary.ts';

const HOSTILE = `</script><img src=x onerror=alert(1)>"'&\u202e`;

async function imageWithSnapshots(t: Cleanup): Promise<string> {
  const directory = await temporaryDirectory(t);
  const base = await create(t, { path: join(directory, 'base.qcow2'), size: 64 * MiB });
  await qemuIo(base, ['write -P 1 0 8M']);
  const path = await create(t, { path: join(directory, 'disk <b>.qcow2'), backing: base });
  await qemuIo(path, ['write -c -P 9 40M 64k', 'write -P 2 4M 8M', 'write -z 50M 1M']);
  await qemuImg('snapshot', '-c', HOSTILE, path);
  await qemuIo(path, ['write -P 3 6M 2M']);
  await qemuImg('snapshot', '-c', 'second', path);
  await qemuIo(path, ['write -P 4 20M 4M']);
  return path;
}

async function reportOf(t: Cleanup, image: string): Promise<string> {
  const out = join(await temporaryDirectory(t), 'report.html');
  const { status, stderr } = await cli('snapshot', 'report', image, '-o', out);
  assert.equal(status, 0, stderr);
  return out;
}

test('a report shows the numbers of usage, answers to mouse and keyboard, and runs nothing that an image names', {
  skip: requires.qemuIo() || requires.chromium(),
}, async (t) => {
  const image = await imageWithSnapshots(t);
  const out = await reportOf(t, image);
  const usage = JSON.parse((await cli('snapshot', 'usage', '--json', image)).stdout);
  const browser = await startBrowser(t);
  const backgrounds: string[] = [];
  for (const scheme of ['light', 'dark'] as const) {
    const { page, complaints } = await openPage(browser, out, scheme);
    assert.equal(await page.locator('h1').textContent(), 'disk <b>.qcow2');
    const bytesOf = async (selector: string): Promise<number> =>
      Number(await page.locator(selector).getAttribute('data-bytes'));
    assert.equal(await bytesOf('.tile [data-figure=used]'), usage.used);
    assert.equal(await bytesOf('.tile [data-figure=shared]'), usage.shared);
    const rows: [string, Record<string, unknown>][] = usage.snapshots.map((each: { id: string }) => [each.id, each]);
    for (const [id, state] of [...rows, ['now', usage.live] as [string, Record<string, unknown>]]) {
      for (const figure of ['referenced', 'exclusive', 'shared']) {
        assert.equal(
          await bytesOf(`tr[data-snapshot="${id}"] [data-figure=${figure}]`),
          state[figure],
          `${id} ${figure}`,
        );
      }
      if (id !== 'now') {
        assert.equal(await bytesOf(`tr[data-snapshot="${id}"] [data-figure=freed]`), state['freed-if-deleted']);
      }
    }
    assert.match((await page.locator('tr[data-snapshot="1"] .name').textContent()) ?? '', /^<\/script><img src=x/);
    // Kinds of the allocation map: what was written above.
    for (const [kind, bytes] of [
      ['data', 4 * MiB],
      ['shared', 8 * MiB],
      ['compressed', 64 * 1024],
      ['zero', MiB],
      ['below', 4 * MiB],
    ] as const) {
      assert.equal(await bytesOf(`#allocation [data-kind=${kind}]`), bytes, kind);
    }
    const tip = page.locator('#tip');
    assert.ok(await tip.isHidden());
    await page.locator('#map').scrollIntoViewIfNeeded();
    await page.locator('#map').hover({ position: { x: 4, y: 4 } });
    assert.match((await tip.textContent()) ?? '', /^0 B to .*: from a backing file/);
    await page.locator('#map').focus();
    await page.keyboard.press('End');
    assert.match((await tip.textContent()) ?? '', / to 64 MiB .*: unallocated$/);
    await page.locator('#cost .bar i').first().hover();
    assert.match((await tip.textContent()) ?? '', /^the disk as it is now, alone: /);
    await page.locator('#timeline circle[tabindex]').first().focus();
    assert.ok(await tip.isVisible());
    await page.keyboard.press('Escape');
    assert.ok(await tip.isHidden());
    backgrounds.push(await page.evaluate('getComputedStyle(document.body).backgroundColor'));
    // Nothing is wider than a small screen.
    await page.setViewportSize({ width: 400, height: 800 });
    assert.equal(await page.evaluate('document.documentElement.scrollWidth'), 400);
    assert.deepEqual(complaints, []);
    await page.close();
  }
  assert.notEqual(backgrounds[0], backgrounds[1]);
});

test('an allocation map is a picture of its own, or a page', {
  skip: requires.qemuIo() || requires.chromium(),
}, async (t) => {
  const host = new ImageHost();
  const image = await host.open(await imageWithSnapshots(t), { readOnly: true });
  t.after(() => image.close());
  const allocation = await mapAllocation(image, { maxCells: 1280 });
  assert.equal(
    Object.values(allocation.totals).reduce((sum, each) => sum + each, 0),
    image.size,
  );
  const browser = await startBrowser(t);
  const svg = await openPage(
    browser,
    await temporaryFile(t, 'map.svg', renderAllocationSvg(HOSTILE, allocation)),
    'dark',
  );
  assert.equal(await svg.page.evaluate('document.documentElement.tagName'), 'svg');
  assert.equal(await svg.page.evaluate('document.querySelectorAll("rect > title").length'), allocation.cells);
  assert.deepEqual(svg.complaints, []);
  // The command makes the same, of which it does not know what is shared with snapshots.
  const printed = await cli('map', '--output', 'svg', image.path);
  assert.equal(printed.status, 0, printed.stderr);
  assert.equal(printed.stdout, renderAllocationSvg('disk <b>.qcow2', allocation));
  const html = await openPage(
    browser,
    await temporaryFile(t, 'map.html', renderAllocationPage(HOSTILE, allocation)),
    'light',
  );
  await html.page.locator('#map').hover({ position: { x: 4, y: 4 } });
  assert.match((await html.page.locator('#tip').textContent()) ?? '', /from a backing file/);
  assert.deepEqual(html.complaints, []);
});

test('disks of other formats, disks without snapshots and empty ones have a report as well', {
  skip: requires.qemuImg() || requires.chromium(),
}, async (t) => {
  const browser = await startBrowser(t);
  for (const [format, size] of [
    ['vmdk', MiB],
    ['vdi', MiB],
    ['raw', 512],
    ['qcow2', 0],
    ['qcow2', MiB],
  ] as const) {
    const out = await reportOf(t, await create(t, { format, size }));
    const { page, complaints } = await openPage(browser, out, 'light');
    assert.equal(await page.locator('h1').textContent(), `disk.${format}`);
    assert.deepEqual(complaints, []);
    await page.close();
    assert.doesNotMatch(await readFile(out, 'utf8'), /https?:|NaN|>undefined/);
  }
});
