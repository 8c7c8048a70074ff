/** Debian's chromium without a window, for pages that we make. */

import { type Browser, chromium, type Page } from 'playwright-core';
import { findProgram } from './requires.ts';
import type { Cleanup } from './temporary.ts';

/** Starts a browser that ends with the test. It reaches no network. */
export async function startBrowser(t: Cleanup): Promise<Browser> {
  const browser = await chromium.launch({
    executablePath: findProgram('chromium') ?? '/usr/bin/chromium',
    args: [
      '--headless',
      '--no-sandbox',
      '--disable-gpu',
      '--disable-quic',
      '--no-first-run',
      '--disable-background-networking',
      '--disable-component-update',
      '--disable-sync',
    ],
  });
  t.after(() => browser.close());
  return browser;
}

/** A page with what went wrong on it: errors, messages, dialogs, and requests for anything but the page itself. */
export interface WatchedPage {
  readonly page: Page;
  readonly complaints: readonly string[];
}

/** Opens a file in a page of its own. */
export async function openPage(browser: Browser, file: string, colorScheme: 'light' | 'dark'): Promise<WatchedPage> {
  const page = await browser.newPage({ colorScheme, viewport: { width: 1180, height: 900 } });
  const complaints: string[] = [];
  page.on('console', (message) => complaints.push(`console: ${message.text()}`));
  page.on('pageerror', (error) => complaints.push(`error: ${error.message}`));
  page.on('dialog', (dialog) => {
    complaints.push(`dialog: ${dialog.message()}`);
    void dialog.dismiss();
  });
  page.on('request', (request) => {
    if (request.url() !== `file://${file}`) complaints.push(`request: ${request.url()}`);
  });
  await page.goto(`file://${file}`);
  return { page, complaints };
}
